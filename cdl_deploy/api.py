"""What the commands do, as functions: train, export, evaluate. `Classifier` is the fourth of the kind.

    import cdl_deploy
    cdl_deploy.train("photos/", tasks=10, out="runs/photos")
    cdl_deploy.export("runs/photos", "bundle")
    print(cdl_deploy.evaluate("bundle/student.onnx", "photos/").accuracy)

Each raises what the command prints as one line, a `CdlError`, prints nothing, and imports PyTorch only when it is
called. docs/tutorial.md goes from photographs to an app with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.evaluation import Evaluation
    from cdl_deploy.export import Exported
    from cdl_deploy.run.record import RunRecord
    from cdl_deploy.training.progress import Progress

AnyPath = str | PathLike[str]


def train(
    data: AnyPath,
    *,
    out: AnyPath | None = None,
    preset: str | None = None,
    config: AnyPath | None = None,
    add: AnyPath | None = None,
    classes: Sequence[str] = (),
    allow_known: bool = False,
    resume: bool = False,
    moved_to: AnyPath | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunRecord:
    """Train a student, task by task, as `cdl train` does; the record of the run.

        train("photos/", tasks=10, out="runs/photos")       a new run
        train("runs/photos", resume=True)                   goes on with an interrupted one
        train("runs/photos", add="new-photos/")             one more task for a finished one

    `data`: `"digits"` or an image folder with train/CLASS/… and test/CLASS/… (or CLASS/… and `holdout=0.2`); with
    `resume` or `add`, the run directory instead.
    `out`: the run directory, which must not exist or be empty.
    `preset`, `config`: named values (`"kdp"`, `"paper"`), and a YAML or JSON file of values, under `options`.
    `moved_to`: with `resume`, where the run's image folder is now.
    `add`: image folder whose classes become the next task; `classes`: only these of them; `allow_known`: train classes
    on that the run knows.
    `progress`: told what happens (`cdl_deploy.training.progress`).
    `options`: the options of `cdl train` with underscores for hyphens: `tasks=10`, `classes_per_task=4`,
    `teacher="vit_…"`, `student="vit_…"`, `method="coda"`, `distill="kdp"`, `epochs=20`, `seed=0`, … docs/help.md has
    all. With `add`, only `holdout`, `skip_bad`, `labels` and those of the optimisation, for this task alone.

    Raises OptionError, DataError, WeightsError or RunError before the run directory is made, where something is wrong.
    """
    with require_extra("cdl_deploy.train", "train"):
        from cdl_deploy.run.config_file import layered_config, typed_sections
        from cdl_deploy.training.loop import add_task
        from cdl_deploy.training.loop import resume as resume_run
        from cdl_deploy.training.loop import train as train_run
        from cdl_deploy.training.preparation import Addition
    if resume or add is not None:
        call = "resume=True" if resume else "add=…"
        if resume and add is not None:
            raise OptionError("resume and add exclude each other: resume first, then add")
        if out is not None and Path(out) != Path(data):
            raise OptionError(f"with {call} the first argument is the run directory: leave out out={str(out)!r}")
        if preset is not None or config is not None:
            raise OptionError(f"{call} goes on with a run as it was configured: leave out preset and config")
    if moved_to is not None and not resume:
        raise OptionError("moved_to belongs to resume=True: give it, or leave it out")
    if add is None and (classes or allow_known):
        raise OptionError("classes and allow_known belong to add=…: give it, or leave them out")
    if resume:
        if options:
            raise OptionError(f"resume=True continues a run as it was configured: leave out {', '.join(options)}")
        return resume_run(Path(data), progress, data=None if moved_to is None else str(moved_to))
    given = typed_sections(_by_section(options))
    if add is not None:
        fixed = [
            name for name in options if name not in ("holdout", "skip_bad", "labels") and name not in given["optim"]
        ]
        if fixed:
            raise OptionError(f"add=… goes on with a run as it was configured: leave out {', '.join(fixed)}")
        addition = Addition(str(add), tuple(classes), **given["data"], allow_known=allow_known, optim=given["optim"])
        return add_task(Path(data), addition, progress)
    if out is None:
        raise OptionError("no run directory is given: add out=…")
    given["data"]["data"] = str(data)
    return train_run(layered_config(preset, Path(config) if config is not None else None, given), Path(out), progress)


def _by_section(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by section of the configuration; paths as text. Raises OptionError for one that there is not."""
    from cdl_deploy.run.config import RunConfig

    fields = {section: set(values) for section, values in RunConfig().to_dict().items()}
    fields["data"].remove("data")  # the first argument
    known = [name for names in fields.values() for name in names]
    for name in options:
        if name not in known:
            raise OptionError(f"train() has no option '{name}'{nearest(name, known)}")
    return {
        section: {
            name: str(value) if isinstance(value, PathLike) else value
            for name, value in options.items()
            if name in names
        }
        for section, names in fields.items()
    }


def export(
    run: AnyPath,
    out: AnyPath | None = None,
    *,
    teacher: bool = True,
    input: str | None = None,
    select: str = "in-graph",
    int8: bool = False,
    int8_dynamic: bool = False,
    fp16: bool = False,
    calibrate: AnyPath | None = None,
    max_drop: float = 0.5,
    ort: bool = False,
    opset: int | None = None,
    labels: str | None = None,
    target: str | None = None,
    target_python: AnyPath | None = None,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    update_from: Sequence[AnyPath] = (),
    statistics: bool = True,
    tokens: float = 1.0,
) -> list[Exported]:
    """Export a run to ONNX as `cdl export` does; one entry for each file that was written, the student's first.

        export("runs/photos", "bundle")                     bundle/student.onnx and bundle/teacher.onnx
        export("runs/photos", "bundle", teacher=False, int8=True)     student.onnx and student.int8.onnx

    `out`: the folder to write; by default `run`/export.
    `teacher`: export the teacher as well.
    `input`: `"image"`, uint8 pixels of any size, preprocessed in the graph, or `"tensor"`, normalised by the caller.
    `select`: who selects prompts: each image (`"in-graph"`), or once at export the images of a task (`"task:3"`) or of
    a folder (`"images:DIR"`).
    `int8`, `int8_dynamic`, `fp16`: smaller variants beside the student; `calibrate`: images for the scales of int8;
    `max_drop`: points of accuracy that a variant may lose on held-out images.
    `ort`: each file in onnxruntime's own format as well. `opset`: 17 to 23.
    `labels`: `"none"` leaves the output of names away, for runtimes without strings.
    `target`: the runtime that the file is for and in which it is tried, as `--target`; `target_python` has it.
    `batch`, `image_size` (height, width): fix the shape of the input, and compute beforehand what depends on it.
    `update_from`: older exported models, or folders of them: beside each file, the update that makes it from the older.
    `statistics`: of a closed-form head, outputs `features` and `distance`, and its sums beside the file.
    `tokens`: the share of patch tokens that are left, the others merge on the way: faster, less accurate.

    Each file is compared with the trained model on held-out images. Raises ParityError where it answers otherwise,
    QuantisationError where a variant loses more than `max_drop`; then nothing is written.
    """
    with require_extra("cdl_deploy.export", "export"):
        from cdl_deploy.export import ExportOptions, Shrink, export_run, options_for_target
    kinds = {"int8": int8, "int8-dynamic": int8_dynamic, "fp16": fp16}
    wanted = tuple(name for name, asked in kinds.items() if asked)
    options = ExportOptions(
        teacher=teacher,
        select=select,
        target_python=Path(target_python) if target_python is not None else None,
        **options_for_target(
            target,
            input=input,
            labels=labels,
            opset=opset,
            batch=batch,
            image_size=image_size,
            kinds=wanted,
            tokens=tokens,
        ),
        shrink=Shrink(wanted, Path(calibrate) if calibrate is not None else None, max_drop),
        ort=ort,
        statistics=statistics,
        tokens=tokens,
        update_from=tuple(Path(old) for old in update_from),
    )
    return export_run(Path(run), Path(out) if out is not None else Path(run) / "export" / (target or ""), options)


def evaluate(
    model: AnyPath,
    data: AnyPath,
    *,
    against: AnyPath | None = None,
    holdout: float | None = None,
    labels: AnyPath | None = None,
    skip_unknown: bool = False,
    batch_size: int = 32,
    threads: int | None = None,
) -> Evaluation:
    """Measure an exported model on images whose classes are known, as `cdl evaluate` does.

        evaluate("bundle/student.onnx", "photos/").accuracy

    `model`: an exported model, or an ONNX classifier of others that comes with its class names.
    `data`: `"digits"`, or a folder with test/CLASS/… or CLASS/…; of the latter `holdout` takes only what training with
    the same value left out.
    `labels`: a file that says of which class each image is, in place of folders.
    `against`: a second model, to be compared image by image. `skip_unknown`: leave out classes that the model does not
    know. `threads`: of those that decode and run the model; by default all cores that this process may use.

    Images that cannot be read are listed in the result. Raises DataError where none can be, or a class is unknown.
    """
    with require_extra("cdl_deploy.evaluate"):
        from cdl_deploy.data.evaluation_images import open_evaluation_images
        from cdl_deploy.evaluation import evaluate as evaluate_model
        from cdl_deploy.runtime.classifier import Classifier
    if (Path(model) / "run.json").exists():
        raise OptionError(f"{model} is a run: export it first, and evaluate the student.onnx that this writes")
    named = None if labels is None else str(labels)
    images = open_evaluation_images("data", "cdl_deploy.evaluate", str(data), holdout, named)
    second = Classifier(Path(against), threads=1) if against is not None else None
    return evaluate_model(
        Classifier(Path(model), threads=1),
        images,
        second,
        skip_unknown=skip_unknown,
        batch_size=batch_size,
        workers=threads,
    )
