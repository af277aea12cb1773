"""`cdl train`: teacher and student learn the tasks of a data set, one after another."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdl_deploy.cli.options_help import GroupedCommand, parameters
from cdl_deploy.cli.output import echo, echo_json, make_console
from cdl_deploy.cli.signals import stop_on_signals
from cdl_deploy.errors import OptionError
from cdl_deploy.printable import as_typed
from cdl_deploy.require_extra import require_extra
from cdl_deploy.run.config import option_sections
from cdl_deploy.run.options import GROUPS, Declared, flag

if TYPE_CHECKING:
    from cdl_deploy.run.record import RunRecord

EXAMPLES = """
cdl train --data digits --tasks 5 --out runs/digits
cdl train --data photos/ --tasks 10 --out runs/photos
cdl train --data photos/ --holdout 0.2 --classes-per-task 4 --student vit_small_patch16_224.augreg_in21k_ft_in1k \\
    --out runs/small
cdl train --data photos/ --tasks 10 --preset kdp --out runs/kdp
cdl train --data photos/ --tasks 10 --distill kd --teacher-run runs/kdp --out runs/kd
cdl train --data photos/ --task-file tasks.yaml --out runs/photos \\
    --teacher vit_base_patch16_224.augreg_in21k_ft_in1k --student vit_small_patch16_224.augreg_in21k_ft_in1k
cdl train --data photos/ --preset paper --config my.yaml --distill deit --epochs 35 --out runs/deit
cdl train --data photos/ --tasks 10 --dry-run
cdl train runs/photos --resume
accelerate launch --multi_gpu -m cdl_deploy train --data photos/ --tasks 10 --out runs/photos
cdl train runs/photos --add new-photos/ --classes screw,nut
cdl train runs/photos --undo
"""


RUN, ADD = "Run", "One more task"
WITH_ADDITION = ("holdout", "skip_bad", "labels")
"""Options about images that go with --add; those of the section `optim` do as well."""
WITH_RESUME = ("data", "labels")
"""Options that say where a run's images are now."""
CLASS = GroupedCommand


def _option(help: str, panel: str, *names: str, metavar: str = "") -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="The run directory, where --out does not name it.", show_default=False),
]
Out = Annotated[Path | None, _option("The run directory to write.", RUN, "--out", metavar="RUN")]
Preset = Annotated[
    str | None,
    _option(
        "Start from these values; a file and options go before them. Default: default.",
        RUN,
        metavar="default|kdp|paper",
    ),
]
Config = Annotated[
    Path | None,
    _option(
        "YAML or JSON with sections data, models, method, optim, as in run.json; options go before it.",
        RUN,
        metavar="FILE",
    ),
]
Resume = Annotated[bool, _option("Continue an interrupted RUN as it was configured.", RUN, "--resume")]
DryRun = Annotated[
    bool, _option("Show tasks, parameters, time and memory of a new run; write nothing.", RUN, "--dry-run")
]
AsJson = Annotated[bool, _option("Print the run's record, or the plan, as JSON.", RUN, "--json")]
Add = Annotated[
    str | None,
    _option("Learn the classes in this image folder as the next task of a finished RUN.", ADD, metavar="DIR"),
]
Classes = Annotated[
    str | None, _option("Only these of its classes, in this order; one with a comma in quotes.", ADD, metavar="A,B,...")
]
AllowKnown = Annotated[bool, _option("Train classes that RUN knows on, with the new images.", ADD, "--allow-known")]
Undo = Annotated[bool, _option("Take the last addition back, exactly.", ADD, "--undo")]
Forget = Annotated[str | None, _option("Take a class away again (closed-form heads).", ADD, metavar="CLASS")]


def command(
    run: Run = None,
    out: Out = None,
    preset: Preset = None,
    config: Config = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    add: Add = None,
    classes: Classes = None,
    allow_known: AllowKnown = False,
    undo: Undo = False,
    forget: Forget = None,
    **options: Any,
) -> None:
    """Train a student, task by task; images of earlier tasks are not looked at again.

    By default its backbone stays as it is, and a head in closed form learns each task in one pass: the best that was
    measured. Name a teacher, a method or a distillation (--preset kdp), and prompts train as well: in every task the
    teacher first, then the student from images and teacher, with a checkpoint after every epoch.
    """
    given = _given(options)
    out = _one_directory(run, out)
    of_a_new_run = {"preset": preset, "config": config}
    given_more = [*(name for name, value in of_a_new_run.items() if value is not None), *given]
    if undo or forget is not None:
        others = {"resume": resume, "dry_run": dry_run, "add": add, "classes": classes, "allow_known": allow_known}
        given_more += [name for name, value in others.items() if value]
        _revise(out, undo, forget, given_more, as_json)
        return
    if dry_run:
        if resume or add is not None:
            raise OptionError("--dry-run plans a new run: leave out --resume and --add")
        _check_addition(add, classes, allow_known)
        _show_plan(out, preset, config, given, as_json)
        return
    if out is None:
        raise OptionError("no run directory is given: add --out RUN")
    with require_extra("cdl train", "train"):
        from cdl_deploy.cli.train_progress import Notes, show_training
        from cdl_deploy.run.config_file import layered_config
        from cdl_deploy.training.loop import add_task, train
        from cdl_deploy.training.loop import resume as resume_run
        from cdl_deploy.training.preparation import Addition
        from cdl_deploy.training.progress import Stopped
    _check_addition(add, classes, allow_known)
    if resume and add is not None:
        raise OptionError("--resume and --add exclude each other: resume first, then add")
    if resume:
        if "labels" in given and "data" not in given:
            raise OptionError("--labels says with --data where a run's images are now: give both, or leave it out")
        fixed = [name for name in given_more if name not in WITH_RESUME]
        _refuse(fixed, "--resume continues a run as it was configured")
    if add is not None:
        optim = {it.name for it in option_sections()["optim"]}
        fixed = [name for name in given_more if name not in WITH_ADDITION and name not in optim]
        _refuse(fixed, "--add goes on with a run as it was configured")
    from cdl_deploy.cli import is_main_process

    quiet = not sys.stderr.isatty() or not is_main_process()
    with nullcontext(Notes()) if quiet else show_training() as progress, stop_on_signals() as stop:
        try:
            if resume:
                record = resume_run(out, progress, stop, given.get("data"), given.get("labels"))
            elif add is not None:
                changed = {name: value for name, value in given.items() if name in optim}
                images = {name: given[name] for name in WITH_ADDITION if name in given}
                addition = Addition(add, _names(classes), **images, allow_known=allow_known, optim=changed)
                record = add_task(out, addition, progress, stop)
            else:
                asked = layered_config(preset, config, _sections(given))
                asked.method.check_used(given)
                record = train(asked, out, progress, stop)
        except (Stopped, KeyboardInterrupt):
            if (out / "run.json").exists() and is_main_process():
                echo(f"\nstopped; continue with: cdl train {as_typed(out)} --resume", err=True)
            raise typer.Exit(stop.exit_code if stop() else 130) from None
    if is_main_process():
        print_run(record, out, as_json)


def _revise(out: Path | None, undo: bool, forget: str | None, more: Sequence[str], as_json: bool) -> None:
    """Take an addition back, or a class away; `more` are options that were given as well."""
    flag_given = "--undo" if undo else "--forget"
    _refuse(
        [*(["forget"] if undo and forget is not None else []), *more],
        f"{flag_given} changes a finished run and learns nothing",
    )
    if out is None:
        raise OptionError(f"{flag_given} needs the run: cdl train RUN {flag_given}")
    with require_extra("cdl train", "train"):
        from cdl_deploy.training.revisions import forget_class, undo_task
    record = undo_task(out) if forget is None else forget_class(out, forget)
    print_run(record, out, as_json)


def _one_directory(run: Path | None, out: Path | None) -> Path | None:
    """The run directory, given as an argument or as --out, or not at all."""
    if run is not None and out is not None and run != out:
        raise OptionError(f"RUN is {run} and --out is {out}: give one of them")
    return run or out


def _show_plan(out: Path | None, preset: str | None, config: Path | None, given: dict[str, Any], as_json: bool) -> None:
    """What the run would be; nothing is written."""
    with require_extra("cdl train", "train"):
        from cdl_deploy.cli.train_progress import notes_on, show_training
        from cdl_deploy.run.config_file import layered_config
        from cdl_deploy.training.dry_run import plan_run
    with show_training() if sys.stderr.isatty() else nullcontext(None) as progress:
        asked = layered_config(preset, config, _sections(given))
        asked.method.check_used(given)
        plan = plan_run(asked, out, progress)
    for text in notes_on(plan.record):
        echo(f"note: {text}", err=True)
    if as_json:
        echo_json(plan.to_dict())
        return

    from cdl_deploy.cli.plan_table import plan_table

    make_console().print(plan_table(plan))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed, under the names they have now."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for declared in _declared():
        old = declared.about.was
        if old is not None and old in given:
            if declared.name in given:
                raise OptionError(f"{flag(old)} is the old name of {declared.flag}: give one of them")
            echo(f"note: {flag(old)} is now called {declared.flag}", err=True)
            given[declared.name] = given.pop(old)
    return given


def _sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by section of the configuration."""
    return {
        section: {it.name: given[it.name] for it in options if it.name in given}
        for section, options in option_sections(_with_plugins).items()
    }


def _declared() -> list[Declared]:
    """The options that are read from the configuration, heading by heading."""
    found = [it for options in option_sections(_with_plugins).values() for it in options]
    return sorted(found, key=lambda it: GROUPS.index(it.group) if it.group in GROUPS else len(GROUPS))


_with_plugins = False


def offer_options(with_plugins: bool = False) -> None:
    """Give the command its parameters: those above, and one for every option of a configuration."""
    global _with_plugins
    _with_plugins = with_plugins
    own = [it for it in _own.parameters.values() if it.kind is not Parameter.VAR_KEYWORD]
    # A function's parameters are read from this attribute, and its type hints by name: no two can differ.
    command.__signature__ = _own.replace(  # type: ignore[attr-defined]
        parameters=[*own, *(made for declared in _declared() for made in parameters(declared))]
    )


_own = signature(command, eval_str=True)
offer_options()


def _names(classes: str | None) -> tuple[str, ...]:
    """Class names with commas between, as a line of CSV: one that has a comma itself stands in double quotes."""
    try:
        lines = list(csv.reader([classes or ""], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise OptionError(f"--classes {classes}: {error}; a class with a comma stands in double quotes") from None
    return tuple(name.strip() for line in lines for name in line)


def _check_addition(add: str | None, classes: str | None, allow_known: bool) -> None:
    if add is None and (classes is not None or allow_known):
        raise OptionError("--classes and --allow-known belong to --add DIR: give it, or leave them out")


def _refuse(given: Sequence[str], why: str) -> None:
    if given:
        names = ", ".join(map(flag, given))
        raise OptionError(f"{why}, so {names} cannot be given: leave {'it' if len(given) == 1 else 'them'} out")


def print_run(record: RunRecord, out: Path, as_json: bool) -> None:
    """The record as JSON, or its tables and what to do next."""
    if as_json:
        echo_json(record.to_dict())
        return

    from cdl_deploy.cli.run_table import run_table
    from cdl_deploy.cli.runs import PICTURES

    console = make_console()
    console.print(run_table(record))
    if record.skipped_images:
        count = len(record.skipped_images)
        text = f"{count} unreadable image{'s' if count > 1 else ''} left out; run.json names them."
        console.print(text, soft_wrap=True)
    pictures = ", ".join(f"{name}.png" for name in PICTURES)
    lines = f"run:      {out}\npictures: {pictures} in it\nnext:     cdl export {as_typed(out)} --onnx"
    if (out / "logs" / "tensorboard").is_dir():
        lines += f"\ncurves:   tensorboard --logdir {as_typed(out)}"
    console.print(lines, highlight=False, soft_wrap=True, markup=False)
