"""`cdl train`: teacher and student learn the tasks of a data set, one after another."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cdl_deploy.cli import train_options as option
from cdl_deploy.cli.signals import stop_on_signals
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.run.record import RunRecord

EXAMPLES = """
cdl train --data digits --tasks 5 --out runs/digits
cdl train --data photos/ --tasks 10 --out runs/photos
cdl train --data photos/ --holdout 0.2 --classes-per-task 4 --distill none --out runs/alone
cdl train --data photos/ --tasks 10 --distill kd --teacher-run runs/photos --out runs/photos-kd
cdl train --data photos/ --task-file tasks.yaml --out runs/photos \\
    --teacher vit_base_patch16_224.augreg_in21k_ft_in1k --student vit_small_patch16_224.augreg_in21k_ft_in1k
cdl train --data photos/ --preset paper --config my.yaml --distill deit --epochs 35 --out runs/deit
cdl train --data photos/ --tasks 10 --dry-run
cdl train runs/photos --resume
accelerate launch --multi_gpu -m cdl_deploy train --data photos/ --tasks 10 --out runs/photos
cdl train runs/photos --add new-photos/ --classes screw,nut
"""


def command(
    run: option.Run = None,
    out: option.Out = None,
    preset: option.Preset = None,
    config: option.Config = None,
    add: option.Add = None,
    classes: option.Classes = None,
    allow_known: option.AllowKnown = False,
    data: option.Data = None,
    tasks: option.Tasks = None,
    classes_per_task: option.ClassesPerTask = None,
    task_file: option.TaskFile = None,
    holdout: option.Holdout = None,
    class_order: option.ClassOrder = None,
    augmentation: option.Augmentation = None,
    image_size: option.ImageSize = None,
    skip_bad: option.SkipBad = False,
    teacher: option.Teacher = None,
    student: option.Student = None,
    teacher_weights: option.TeacherWeights = None,
    student_weights: option.StudentWeights = None,
    teacher_run: option.TeacherRun = None,
    pixel_range: option.PixelRange = None,
    method: option.Method = None,
    distill: option.Distill = None,
    query: option.Query = None,
    query_regulariser: option.QueryRegulariser = None,
    prompt_length: option.PromptLength = None,
    key_loss_weight: option.KeyLossWeight = None,
    pool_size: option.PoolSize = None,
    top_k: option.TopK = None,
    shared_prompt_length: option.SharedPromptLength = None,
    merge_share: option.MergeShare = None,
    orthogonality: option.Orthogonality = None,
    components_per_task: option.ComponentsPerTask = None,
    alpha: option.Alpha = None,
    temperature: option.Temperature = None,
    dkd_target_weight: option.DkdTargetWeight = None,
    dkd_nontarget_weight: option.DkdNontargetWeight = None,
    dkd_temperature: option.DkdTemperature = None,
    fitnets_weight: option.FitnetsWeight = None,
    reviewkd_weight: option.ReviewkdWeight = None,
    kd_prompt_length: option.KdPromptLength = None,
    kd_prompt_blocks: option.KdPromptBlocks = None,
    kd_prompt_start: option.KdPromptStart = None,
    kd_prompt_scale: option.KdPromptScale = None,
    kd_token_start: option.KdTokenStart = None,
    kd_lr_scale: option.KdLrScale = None,
    kd_classes: option.KdClasses = None,
    alpha_holdout: option.AlphaHoldout = None,
    head_start: option.HeadStart = None,
    student_head: option.StudentHead = None,
    calibration: option.Calibration = None,
    epochs: option.Epochs = None,
    batch_size: option.BatchSize = None,
    lr: option.Lr = None,
    schedule: option.Schedule = None,
    seed: option.Seed = None,
    device: option.Device = None,
    precision: option.Precision = None,
    compile: option.Compile = False,
    resident: option.Resident = False,
    workers: option.Workers = None,
    log: option.Log = None,
    resume: option.Resume = False,
    dry_run: option.DryRun = False,
    as_json: option.AsJson = False,
) -> None:
    """Train a student, task by task, with a teacher's help.

    In every task the teacher learns the new classes first, then the student learns them from images and teacher. Images
    of earlier tasks are not looked at again. A checkpoint is written after every epoch.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("run", "out", "add", "classes", "allow_known", "resume", "dry_run", "as_json")
        and value is not None
        and value is not False
    }
    out = _one_directory(run, out)
    if dry_run:
        if resume or add is not None:
            raise OptionError("--dry-run plans a new run: leave out --resume and --add")
        _show_plan(out, preset, config, given, as_json)
        return
    if out is None:
        raise OptionError("no run directory is given: add --out RUN")
    with require_extra("cdl train", "train"):
        from cdl_deploy.cli.train_progress import show_training
        from cdl_deploy.training.config_file import layered_config
        from cdl_deploy.training.loop import add_task, train
        from cdl_deploy.training.loop import resume as resume_run
        from cdl_deploy.training.preparation import Addition
        from cdl_deploy.training.progress import Stopped
    if add is None and (classes is not None or allow_known):
        raise OptionError("--classes and --allow-known belong to --add DIR: give it, or leave them out")
    if resume and add is not None:
        raise OptionError("--resume and --add exclude each other: resume first, then add")
    if resume:
        _refuse(given, "--resume continues a run as it was configured")
    if add is not None:
        fixed = {
            name: value
            for name, value in given.items()
            if name not in option.ADDITION and name not in option.SECTIONS["optim"]
        }
        _refuse(fixed, "--add goes on with a run as it was configured")
    from cdl_deploy.cli import is_main_process

    quiet = not sys.stderr.isatty() or not is_main_process()
    with nullcontext(None) if quiet else show_training() as progress, stop_on_signals() as stop:
        try:
            if resume:
                record = resume_run(out, progress, stop)
            elif add is not None:
                optim = {name: given[name] for name in option.SECTIONS["optim"] if name in given}
                names = tuple(name.strip() for name in classes.split(",")) if classes is not None else ()
                addition = Addition(add, names, holdout, skip_bad, allow_known, optim)
                record = add_task(out, addition, progress, stop)
            else:
                record = train(layered_config(preset, config, option.sections(given)), out, progress, stop)
        except (Stopped, KeyboardInterrupt):
            if (out / "run.json").exists() and is_main_process():
                typer.echo(f"\nstopped; continue with: cdl train {out} --resume", err=True)
            raise typer.Exit(stop.exit_code if stop() else 130) from None
    if is_main_process():
        _print(record, out, as_json)


def _one_directory(run: Path | None, out: Path | None) -> Path | None:
    """The run directory, given as an argument or as --out, or not at all."""
    if run is not None and out is not None and run != out:
        raise OptionError(f"RUN is {run} and --out is {out}: give one of them")
    return run or out


def _show_plan(out: Path | None, preset: str | None, config: Path | None, given: dict[str, Any], as_json: bool) -> None:
    """What the run would be; nothing is written."""
    with require_extra("cdl train", "train"):
        from cdl_deploy.cli.train_progress import show_training
        from cdl_deploy.training.config_file import layered_config
        from cdl_deploy.training.dry_run import plan_run
    with show_training() if sys.stderr.isatty() else nullcontext(None) as progress:
        plan = plan_run(layered_config(preset, config, option.sections(given)), out, progress).to_dict()
    if as_json:
        import json

        typer.echo(json.dumps(plan, indent=2))
        return
    from rich.console import Console

    from cdl_deploy.cli.plan_table import plan_table

    Console().print(plan_table(plan))


def _refuse(given: dict[str, Any], why: str) -> None:
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"{why}, so {names} cannot be given: leave it out")


def _print(record: RunRecord, out: Path, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(record.to_dict(), indent=2))
        return
    from rich.console import Console

    from cdl_deploy.cli.run_table import run_table
    from cdl_deploy.cli.runs import PICTURES

    console = Console()
    console.print(run_table(record))
    if record.skipped_images:
        count = len(record.skipped_images)
        text = f"{count} unreadable image{'s' if count > 1 else ''} left out; run.json names them."
        console.print(text, soft_wrap=True)
    pictures = ", ".join(f"{name}.png" for name in PICTURES)
    lines = f"run:      {out}\npictures: {pictures} in it\nnext:     cdl export {out} --onnx"
    if (out / "logs" / "tensorboard").is_dir():
        lines += f"\ncurves:   tensorboard --logdir {out}"
    console.print(lines, highlight=False, soft_wrap=True, markup=False)
