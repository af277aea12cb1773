"""`cdl train`: teacher and student learn the tasks of a data set, one after another."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdl_deploy.cli.missing import needs
from cdl_deploy.cli.signals import stop_on_signals
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from cdl_deploy.training.run_directory import Record

EXAMPLES = """
cdl train --data digits --tasks 5 --out runs/digits
cdl train --data photos/ --tasks 10 --out runs/photos
cdl train --data photos/ --holdout 0.2 --classes-per-task 4 --distill none --out runs/alone
cdl train --data photos/ --task-file tasks.yaml --out runs/photos \\
    --teacher vit_base_patch16_224.augreg_in21k_ft_in1k --student vit_small_patch16_224.augreg_in21k_ft_in1k
cdl train runs/photos --resume
cdl train runs/photos --add new-photos/ --classes screw,nut
"""

ADD, DATA, MODELS, METHOD, OPTIM = "One more task", "Images and tasks", "Models", "Method", "Training"

ADDITION = ("holdout", "skip_bad")
"""Options about images that go with --add; those of training do as well."""

SECTIONS = {
    "data": ("data", "tasks", "classes_per_task", "task_file", "holdout", "class_order", "augmentation", "image_size",
             "skip_bad"),
    "models": ("teacher", "student", "teacher_weights", "student_weights"),
    "method": ("method", "distill", "query", "query_regulariser", "prompt_rows", "pull_weight", "pool_size", "top_k",
               "shared_prompt_rows", "merge_share", "orthogonality", "components_per_task", "alpha", "temperature",
               "kd_prompt_rows", "kd_token_start", "kd_lr_scale", "head_start"),
    "optim": ("epochs", "batch_size", "lr", "seed", "device", "workers"),
}  # fmt: skip
"""Which section of the run's configuration an option belongs to."""


def _option(metavar: str, help: str, panel: str, name: str | None = None) -> Any:
    names = [name] if name else []
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


def command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="The run directory, where --out does not name it.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run directory to write.", show_default=False)
    ] = None,
    add: Annotated[
        str | None, _option("DIR", "Learn the classes in this image folder as the next task of a finished RUN.", ADD)
    ] = None,
    classes: Annotated[str | None, _option("A,B,...", "Only these of its classes, in this order.", ADD)] = None,
    allow_known: Annotated[
        bool, _option("", "Train classes that RUN knows on, with the new images.", ADD, "--allow-known")
    ] = False,
    data: Annotated[
        str | None,
        _option(
            "DIR|digits",
            "Image folder (train/CLASS/… with test/ or val/, or CLASS/… with --holdout), or the embedded digits. "
            "Default: digits.",
            DATA,
        ),
    ] = None,
    tasks: Annotated[int | None, _option("N", "Deal the classes out to N tasks. Default: 5.", DATA)] = None,
    classes_per_task: Annotated[int | None, _option("N", "Or: N classes a task.", DATA)] = None,
    task_file: Annotated[
        Path | None, _option("FILE", "Or: a YAML list of tasks, each a list of classes.", DATA)
    ] = None,
    holdout: Annotated[float | None, _option("SHARE", "Hold out this share of every class, such as 0.2.", DATA)] = None,
    class_order: Annotated[str | None, _option("shuffled|natural", "Default: shuffled, by the seed.", DATA)] = None,
    augmentation: Annotated[
        str | None, _option("auto|photo|gentle|none", "Random crops and flips. Default: auto, by the data.", DATA)
    ] = None,
    image_size: Annotated[
        int | None, _option("PIXELS", "Side of the images. Default: the student's own.", DATA)
    ] = None,
    skip_bad: Annotated[bool, _option("", "Go on without unreadable images.", DATA, "--skip-bad")] = False,
    teacher: Annotated[
        str | None, _option("MODEL", "A plain ViT by its timm tag. Default: mini_teacher.", MODELS)
    ] = None,
    student: Annotated[str | None, _option("MODEL", "The same, smaller. Default: mini_student.", MODELS)] = None,
    teacher_weights: Annotated[Path | None, _option("FILE", "Its weights. Default: from the hub.", MODELS)] = None,
    student_weights: Annotated[Path | None, _option("FILE", "Its weights. Default: from the hub.", MODELS)] = None,
    method: Annotated[str | None, _option("NAME", "coda, l2p, dualprompt or apt. Default: coda.", METHOD)] = None,
    distill: Annotated[str | None, _option("NAME", "kdp, or none for the student alone. Default: kdp.", METHOD)] = None,
    query: Annotated[
        str | None,
        _option("full|block:K", "Choose prompts after a pass of their own, or after K blocks. Default: full.", METHOD),
    ] = None,
    query_regulariser: Annotated[
        float | None, _option("WEIGHT", "Pull block:K's choice towards that of full. Default: 0.", METHOD)
    ] = None,
    prompt_rows: Annotated[
        int | None, _option("N", "Rows of a prompt, twice. Default: L2P and DualPrompt 10, CODA 4.", METHOD)
    ] = None,
    pull_weight: Annotated[
        float | None, _option("WEIGHT", "L2P, DualPrompt: of pulling keys to queries. Default: 1.", METHOD)
    ] = None,
    pool_size: Annotated[int | None, _option("N", "L2P: prompts in the pool. Default: 30.", METHOD)] = None,
    top_k: Annotated[int | None, _option("N", "L2P: prompts an image gets. Default: 5.", METHOD)] = None,
    shared_prompt_rows: Annotated[
        int | None, _option("N", "DualPrompt: rows of a shared prompt, twice. Default: 3.", METHOD)
    ] = None,
    merge_share: Annotated[
        float | None, _option("SHARE", "APT: what merged prompts keep of earlier tasks. Default: 0.7.", METHOD)
    ] = None,
    orthogonality: Annotated[
        float | None, _option("WEIGHT", "CODA: of keeping components orthogonal. Default: 0.", METHOD)
    ] = None,
    components_per_task: Annotated[int | None, _option("N", "CODA components a task. Default: 10.", METHOD)] = None,
    alpha: Annotated[
        float | None, _option("SHARE", "Weight of the teacher in loss and prediction. Default: 0.5.", METHOD)
    ] = None,
    temperature: Annotated[float | None, _option("T", "Of the distillation. Default: 2.", METHOD)] = None,
    kd_prompt_rows: Annotated[int | None, _option("N", "KD prompt rows a block, twice. Default: 3.", METHOD)] = None,
    kd_token_start: Annotated[
        str | None, _option("class-token|uniform", "How the KD token starts. Default: class-token.", METHOD)
    ] = None,
    kd_lr_scale: Annotated[
        float | None, _option("SHARE", "Share of the learning rate for KD token and prompts. Default: 0.1.", METHOD)
    ] = None,
    head_start: Annotated[str | None, _option("zeros|linear", "How heads start. Default: zeros.", METHOD)] = None,
    epochs: Annotated[int | None, _option("N", "Epochs a task, teacher and student each. Default: 20.", OPTIM)] = None,
    batch_size: Annotated[
        int | None, _option("N", "Images a step. Default: 64, fewer where a task has under 1,024 images.", OPTIM)
    ] = None,
    lr: Annotated[float | None, _option("LR", "Adam's first learning rate. Default: 0.001.", OPTIM)] = None,
    seed: Annotated[int | None, _option("N", "Everything random follows from it. Default: 0.", OPTIM)] = None,
    device: Annotated[str | None, _option("NAME", "auto, cpu, cuda, mps. Default: auto.", OPTIM)] = None,
    workers: Annotated[int | None, _option("N", "Processes that load images. Default: 0.", OPTIM)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out as it was configured.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Train a student, task by task, with a teacher's help.

    In every task the teacher learns the new classes first, then the student learns them from images and teacher. Images
    of earlier tasks are not looked at again. A checkpoint is written after every epoch.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("run", "out", "add", "classes", "allow_known", "resume", "as_json")
        and value is not None
        and value is not False
    }
    out = _one_directory(run, out)
    with needs("cdl train", "train"):
        from cdl_deploy.cli.train_progress import show_training
        from cdl_deploy.training.additions import Addition, add_task
        from cdl_deploy.training.config import RunConfig
        from cdl_deploy.training.progress import Stopped
        from cdl_deploy.training.run import resume as resume_run
        from cdl_deploy.training.run import train
    if add is None and (classes is not None or allow_known):
        raise OptionError("--classes and --allow-known belong to --add DIR: give it, or leave them out")
    if resume and add is not None:
        raise OptionError("--resume and --add exclude each other: resume first, then add")
    if resume:
        _refuse(given, "--resume continues a run as it was configured")
    if add is not None:
        fixed = {name: value for name, value in given.items() if name not in ADDITION and name not in SECTIONS["optim"]}
        _refuse(fixed, "--add goes on with a run as it was configured")
    quiet = not sys.stderr.isatty()
    with nullcontext(None) if quiet else show_training() as progress, stop_on_signals() as stop:
        try:
            if resume:
                record = resume_run(out, progress, stop)
            elif add is not None:
                optim = {name: given[name] for name in SECTIONS["optim"] if name in given}
                names = tuple(name.strip() for name in classes.split(",")) if classes is not None else ()
                addition = Addition(add, names, holdout, skip_bad, allow_known, optim)
                record = add_task(out, addition, progress, stop)
            else:
                record = train(RunConfig.from_dict(_sections(given)), out, progress, stop)
        except (Stopped, KeyboardInterrupt):
            if (out / "run.json").exists():
                typer.echo(f"\nstopped; continue with: cdl train {out} --resume", err=True)
            raise typer.Exit(stop.exit_code if stop() else 130) from None
    _print(record, out, as_json)


def _one_directory(run: Path | None, out: Path | None) -> Path:
    """The run directory, given as an argument or as --out."""
    if run is not None and out is not None and run != out:
        raise OptionError(f"RUN is {run} and --out is {out}: give one of them")
    directory = run or out
    if directory is None:
        raise OptionError("no run directory is given: add --out RUN")
    return directory


def _refuse(given: dict[str, Any], why: str) -> None:
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"{why}, so {names} cannot be given: leave it out")


def _sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by section of the configuration; paths as text."""
    return {
        section: {
            name: str(given[name]) if isinstance(given[name], Path) else given[name] for name in names if name in given
        }
        for section, names in SECTIONS.items()
    }


def _print(record: Record, out: Path, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(record.to_dict(), indent=2))
        return
    from rich.console import Console

    from cdl_deploy.cli.run_table import run_table

    console = Console()
    console.print(run_table(record.to_dict()))
    if record.skipped_images:
        count = len(record.skipped_images)
        text = f"{count} unreadable image{'s' if count > 1 else ''} left out; run.json names them."
        console.print(text, soft_wrap=True)
    console.print(
        f"Run: {out}   picture: {out / 'accuracy.png'}   next: cdl export {out} --onnx", highlight=False, soft_wrap=True
    )
