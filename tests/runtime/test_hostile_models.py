"""Models that would read, build or run what no classifier of images does: refused, or ended, in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime import running
from cdl_deploy.runtime.bundle import encode_metadata, read_bundle
from cdl_deploy.runtime.onnx_scan import MAX_ELEMENTS, MAX_GRAPHS, check_model_file
from tests.runtime.conftest import WEIGHTS, build_model, example_bundle, set_metadata
from tests.runtime.test_foreign import save


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(set_metadata(model, encode_metadata(example_bundle(path))).SerializeToString())
    return path


def after_logits(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """The tiny model with nodes that make `logits` of `plain`."""
    model = build_model()
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    gemm.output[0] = "plain"
    place = list(model.graph.node).index(gemm) + 1
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def put_apart(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def apart(folder: Path, location: str, name: str = "student.onnx") -> Path:
    model = build_model()
    put_apart(next(tensor for tensor in model.graph.initializer if tensor.name == "weights"), location)
    return write(model, folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`m` with weights in it, weights beside it, and links."""
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "outside.bin", folder / "w.bin", folder / "sub" / "w.bin"):
        file.write_bytes(WEIGHTS.tobytes())
    (folder / "out.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "in.bin").symlink_to(folder / "w.bin")
    os.mkfifo(folder / "pipe.bin")
    return folder


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin"])
def test_values_beside_a_model_are_read(folder, location):
    assert read_bundle(apart(folder, location)).role == "student"


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("../outside.bin", "expected a file in the model's own folder; nothing was read"),
        ("sub/../../outside.bin", "expected a file in the model's own folder; nothing was read"),
        ("{outside}", "expected a file in the model's own folder; nothing was read"),
        ("", "expected a file in the model's own folder; nothing was read"),
        ("out.bin", "a link out of the model's folder; nothing was read"),
        ("pipe.bin", "it is a pipe, expected a regular file; copy it beside the model"),
        ("none.bin", "No such file or directory; copy it beside the model"),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "constant", "inner", "function", "training"])
def test_no_other_file_is_read(folder, location, why, place):
    location = location.format(outside=folder.parent / "outside.bin")
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    put_apart(tensor, location)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4])])
    model = build_model()
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(constant)
    elif place == "inner":
        model.graph.node.append(helper.make_node("If", ["c"], ["w2"], then_branch=inner, else_branch=inner))
    elif place == "function":
        model.functions.append(helper.make_function("own", "f", [], ["w"], [constant], []))
    else:
        model.training_info.add().algorithm.CopyFrom(inner)
    path = write(model, folder / "student.onnx")
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    assert str(caught.value).startswith(f"{path}: the values of tensor 'w' are to be read from '{location}'")
    assert str(caught.value).endswith(why)


def test_a_cache_of_links_is_read(folder, tmp_path):
    """Model and values are links into one folder, as the cache of a hub has them."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "student.onnx").symlink_to(apart(folder, "w.bin"))
    (cache / "w.bin").symlink_to(folder / "w.bin")
    check_model_file(cache / "student.onnx")


def test_damage_that_hides_a_place_is_refused(folder):
    path = apart(folder, "../outside.bin")
    path.write_bytes(b"\x0b" + path.read_bytes())  # a group begins, which ONNX has none of
    with pytest.raises(BundleError, match=r"is not an ONNX model .*\(no whole protobuf message\)"):
        read_bundle(path)


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand"])
@pytest.mark.parametrize("as_node", [False, True])
def test_a_huge_constant_is_not_built(tmp_path, operator, as_node):
    size = np.array([2, MAX_ELEMENTS // 2 + 1], dtype=np.int64)
    nodes = [helper.make_node(operator, ["plain", "size"] if operator == "Expand" else ["size"], ["huge"])]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["size"], value=numpy_helper.from_array(size)))
    model = after_logits(
        *nodes,
        helper.make_node("ReduceMax", ["huge"], ["one"], keepdims=0),
        helper.make_node("Add", ["plain", "one"], ["logits"]),
        **({} if as_node else {"size": size}),
    )
    with pytest.raises(
        BundleError, match=rf"operator {operator} would make a tensor of [\d,]+ numbers, expected at most"
    ):
        read_bundle(write(model, tmp_path / "m.onnx"))


def test_memory_has_a_limit(tmp_path, photos):
    """A size that the graph computes; in a process of its own, which may take 200 MB more."""
    model = after_logits(
        helper.make_node("Mul", ["half", "half"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["one"], keepdims=0),
        helper.make_node("Add", ["plain", "one"], ["logits"]),
        half=np.array([1 << 14], dtype=np.int64),  # 1 GB in all
    )
    path = write(model, tmp_path / "m.onnx")
    (tmp_path / "memory.max").write_text(str(200 << 20))
    program = (
        "import sys, pathlib, cdl_deploy.cli, cdl_deploy.cli.memory_limit as limit\n"
        f"limit.CGROUPS = (pathlib.Path('/none'), pathlib.Path({str(tmp_path / 'memory.max')!r}))\n"
        "cdl_deploy.cli.main(sys.argv[1:])"
    )
    for words in (["predict", path, photos["red"]], ["inspect", path]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        if words[0] == "inspect":  # nothing is run, so nothing is built
            assert (done.returncode, done.stderr) == (0, "")
        else:
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith(f"error: {path} ")
            assert done.stderr.endswith("needs more memory than there is\n")


def test_a_provider_that_fails_says_so_itself(make_model, monkeypatch, capsys):
    """onnxruntime printed a banner, and then ran on the CPU."""
    import onnxruntime

    def fail(*_: object, enable_fallback: int, **__: object) -> None:
        assert enable_fallback == 0
        raise RuntimeError("CUDA failure 35: driver version is insufficient")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    path = make_model()
    with pytest.raises(BundleError) as caught:
        Classifier(path, providers=["CUDAExecutionProvider"])
    assert str(caught.value) == (
        f"{path} cannot be opened with CUDAExecutionProvider: CUDA failure 35: driver version is insufficient; "
        "name none to use the CPU"
    )
    assert capsys.readouterr() == ("", "")


def test_graphs_within_graphs_end(tmp_path):
    outputs = [helper.make_tensor_value_info("location", TensorProto.FLOAT, None)]
    graph = helper.make_graph([], "innermost", [], outputs)
    for _ in range(MAX_GRAPHS):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=graph)], "g", [], outputs)
    model = build_model()
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=graph))
    with pytest.raises(BundleError, match=f"graphs within graphs, more than {MAX_GRAPHS} deep"):
        read_bundle(write(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1_000_000, 3, 8, 8), r"it takes 1,000,000 images at a time, which are 0.8 GB|which are"),
        ((2_000_000, 3, 8, 8), r"it takes 2,000,000 images at a time, which are 1.5 GB, expected at most 1.1 GB"),
        (("B", 3, 30_000, 30_000), r"height is 30000, expected 1 to 4096"),
    ],
)
def test_hostile_sizes_of_a_foreign_model(tmp_path, shape, why):
    path = save(tmp_path / "m.onnx", shape, metadata={"labels": json.dumps(["a", "b", "c", "d"])})
    if shape[0] == 1_000_000:  # within the limit: it is opened, and nothing more
        assert Classifier(path).interface.batch == shape[0]
        return
    with pytest.raises(BundleError, match=why) as caught:
        Classifier(path)
    assert str(path) in str(caught.value)


def test_a_size_in_the_metadata_has_a_limit(make_model, tiny):
    stored = encode_metadata(tiny.bundle())
    stored["cdl.preprocessing"] = stored["cdl.preprocessing"].replace('"resize": 12', '"resize": 30000')
    with pytest.raises(BundleError, match="resize is 30000, expected 1 to 4096"):
        read_bundle(make_model(metadata=stored))


def endless(path: Path, steps: int = 10**12) -> Path:
    """A model that does nothing for hours."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["x"], ["x2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("c2", TensorProto.BOOL, []), value("x2", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["steps", "", "plain"], ["logits"], body=body)
    return write(after_logits(loop, steps=np.array(steps, dtype=np.int64)), path)


def test_a_run_that_does_not_end_is_ended(tmp_path, monkeypatch, cdl, photos):
    path = endless(tmp_path / "m.onnx")
    monkeypatch.setattr(running, "SECONDS_AN_IMAGE", 0.2)
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.05)
    code, out, err = cdl("predict", path, photos["red"])
    assert (code, out) == (2, "")
    assert err == (
        f"error: {path} cannot be run on float32 [1, 3, 8, 10]: stopped after 0 s: at most 0 s are given to 1 images\n"
    )


def test_ctrl_c_ends_it(tmp_path, cdl, photos):
    """As Ctrl-C does it: the main thread, which waits for rows, gets a KeyboardInterrupt."""
    path = endless(tmp_path / "m.onnx")

    def press() -> None:
        while not running._under_way:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with none
    try:
        threading.Thread(target=press).start()
        code, _, err = cdl("predict", path, photos["red"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, err) == (130, "stopped\n")
    until = time.monotonic() + 30
    while running._under_way and time.monotonic() < until:
        time.sleep(0.01)
    assert not running._under_way


def test_an_answer_that_is_no_number_is_an_error_of_its_image(tmp_path, cdl, photos):
    """log(0.5 - a colour) is NaN for bright ones: red fails, and its neighbours do not."""
    red = np.array([1, 0, 0, 0], dtype=np.float32)
    model = after_logits(
        helper.make_node("Mul", ["plain", "red"], ["only"]),
        helper.make_node("Sub", ["half", "only"], ["less"]),
        helper.make_node("Log", ["less"], ["log"]),
        helper.make_node("Mul", ["log", "zero"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        red=red,
        half=np.array([0.5], dtype=np.float32),
        zero=np.array([0], dtype=np.float32),
    )
    path = write(model, tmp_path / "m.onnx")
    code, out, err = cdl("predict", path, photos["red"], photos["green"], "--format", "jsonl")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert rows[0] == {"path": str(photos["red"]), "error": f"{photos['red']}: the model's answer is no number (NaN)"}
    assert rows[1]["label"] == "green"
    assert (code, err) == (1, "1 of 2 images could not be read\n")
    with pytest.raises(BundleError, match=r"its answer to image 1 of 1 is no number \(NaN\)"):
        list(Classifier(path).predict(Image.open(photos["red"])))
    test = tmp_path / "data" / "test"
    for name in ("red", "green"):
        (test / name).mkdir(parents=True)
        (test / name / "1.png").write_bytes(photos[name].read_bytes())
    code, out, err = cdl("evaluate", path, "--data", tmp_path / "data", "--json")  # with test/CLASS alone
    report = json.loads(out, parse_constant=pytest.fail)
    assert (code, report["images"], len(report["unreadable"])) == (1, 1, 1)
    assert err == (
        f"{test / 'red' / '1.png'}: the model's answer is no number (NaN)\n1 of 2 images could not be read\n"
    )


def test_many_classes_take_linear_time(tiny):
    names = tuple(f"n{number:08d}" for number in range(21_841))
    began = time.process_time()
    tiny.bundle(classes=names, tasks=(names[:10_000], names[10_000:]))
    assert time.process_time() - began < 1  # 9.8 s when every name was looked for among all


@pytest.mark.parametrize(
    "command", [("predict", "x.png"), ("inspect",), ("bench-latency",), ("update", "a.cdlup", "-o", "n.onnx")]
)
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch, cdl, command):
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(b"x")
    Path("a.cdlup").write_bytes(b"x")
    os.mkfifo("m.onnx")
    name, *rest = command
    code, _, err = cdl(name, "m.onnx", *rest)
    assert code == 2
    assert err.count("\n") == 1


def test_a_pipe_is_no_update(tmp_path, monkeypatch, cdl):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"x" * 100)
    os.mkfifo("pipe")
    code, _, err = cdl("update", "m.onnx", "pipe", "-o", "n.onnx")
    assert (code, err) == (2, "error: pipe: it is a pipe, expected a regular file; expected a .cdlup file\n")
