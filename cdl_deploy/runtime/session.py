"""Opening any model file with onnxruntime: as it is told to, or one line that says why it cannot be opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdl_deploy.errors import BundleError
from cdl_deploy.printable import as_typed
from cdl_deploy.runtime.onnx_scan import check_model_file
from cdl_deploy.runtime.protobuf import MalformedMessageError
from cdl_deploy.typed_json import short

if TYPE_CHECKING:
    import onnxruntime


def open_session(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    optimise: bool = True,
) -> onnxruntime.InferenceSession:
    """Open any `.onnx` file with onnxruntime.

    `providers` are execution providers in order of preference (default: CPU); `threads` is the number of threads of one
    operator (default: onnxruntime's choice). Raises `BundleError` with one line if the file cannot be opened.
    """
    import onnxruntime

    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BundleError(f"{path} is a folder, expected an .onnx file: {_model_in(path)}")
        check_model_file(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; expected an .onnx file") from error
    except MalformedMessageError as error:
        raise _not_opened(path, size, error) from error
    if size == 0:
        raise BundleError(f"{path} is empty (0 bytes), expected an ONNX model: copy or export it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # warnings are about graph shapes; errors come as exceptions, which we tell
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = list(providers or ["CPUExecutionProvider"])
    try:
        # No fallback: it prints a banner, and runs elsewhere than it was told to.
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
        _read_texts(session)
        return session
    except MemoryError as error:
        raise BundleError(f"{path} ({size:,} bytes) needs more memory than there is") from error
    except Exception as error:  # onnxruntime's exceptions share no base class
        if wanted != ["CPUExecutionProvider"]:
            raise BundleError(
                f"{path} cannot be opened with {', '.join(wanted)}: {short(str(error))}; name none to use the CPU"
            ) from error
        raise _not_opened(path, size, error) from error


def _model_in(folder: Path) -> str:
    """Which file of a folder was meant, or how there comes to be one."""
    for file in (folder / "student.onnx", folder / "export" / "student.onnx"):
        if file.is_file():
            return f"give {file}"
    if (folder / "run.json").is_file():
        return f"it is a run without an exported model, so export it first: cdl export {as_typed(folder)} --onnx"
    found = sorted(folder.glob("*.onnx"))
    return f"give {found[0]}" if found else "there is none in it"


def _not_opened(path: Path, size: int, error: Exception) -> BundleError:
    import onnxruntime

    if path.suffix == ".xml":
        return BundleError(
            f"{path} is an OpenVINO model, expected an .onnx file: run it in OpenVINO (examples/openvino), or give the "
            "student.onnx beside it"
        )
    return BundleError(
        f"{path} ({size:,} bytes) is not an ONNX model that onnxruntime {onnxruntime.__version__} can open, "
        f"or only part of one: copy or export it again ({short(str(error))})"
    )


def _read_texts(session: onnxruntime.InferenceSession) -> None:
    """Raise `UnicodeDecodeError` here, rather than wherever they are read next, for texts damaged beyond UTF-8."""
    metadata: object = session.get_modelmeta().custom_metadata_map
    nodes = [*session.get_inputs(), *session.get_outputs()]
    texts: object = [(node.name, node.type, node.shape) for node in nodes]
    del metadata, texts
