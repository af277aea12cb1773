"""What `cdl train --dry-run` shows: tasks, parameters to train, and how long it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import duration, ending, named

if TYPE_CHECKING:
    from cdl_deploy.training.dry_run import Plan

PARTS = {"backbone": "backbone, frozen", "prompts": "prompts and keys", "class head": "class head",
         "distillation": "distillation"}  # fmt: skip
"""Groups of parameters in a plan, by the words for them."""


def plan_table(plan: Plan) -> RenderableType:
    """Tables of tasks and parameters, and the estimate."""
    config = plan.record.config
    title = f"{ending(config.data.data, 40)}: {config.method.title}, seed {config.optim.seed}"
    said = Text(f"{title}\ndry run: nothing is written", style="italic")
    return Group(said, _tasks(plan), _parameters(plan), Text(_estimate(plan)))


def _tasks(plan: Plan) -> Table:
    tasks = Table(show_footer=len(plan.tasks) > 1)
    tasks.add_column("task", justify="right", no_wrap=True)
    classes = sum(len(task.classes) for task in plan.tasks)
    tasks.add_column("new classes", footer=f"{classes} in all")
    columns = {"images": "train_images", "test images": "test_images"}
    if plan.estimate.steps:
        columns |= {"batch": "batch_size", "steps an epoch": "steps"}
    for heading, key in columns.items():
        total = f"{sum(getattr(task, key) for task in plan.tasks):,}" if key != "batch_size" else ""
        tasks.add_column(heading, justify="right", no_wrap=True, footer=total)
    for task in plan.tasks:
        numbers = [f"{getattr(task, key):,}" for key in columns.values()]
        tasks.add_row(str(task.number), named(task.classes), *numbers)
    return tasks


def _parameters(plan: Plan) -> Table:
    roles = list(plan.parameters)
    table = Table()
    table.add_column(f"parameters in task {plan.estimate.task}", no_wrap=True)
    for role in sorted(roles):
        table.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
    for part, words in PARTS.items():
        table.add_row(words, *[f"{plan.parameters[role][part]:,}" for role in sorted(roles)])
    table.add_section()
    trained = [sum(plan.parameters[role].values()) - plan.parameters[role]["backbone"] for role in sorted(roles)]
    table.add_row("to train", *[f"{count:,}" for count in trained])
    return table


def _estimate(plan: Plan) -> str:
    estimate, optim = plan.estimate, plan.record.config.optim
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in estimate.seconds_by_part.items())
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in estimate.images_per_second.items())
    steps = " and ".join(f"{count} of the {role}" for role, count in estimate.steps.items())
    memory = f"{estimate.memory_bytes / 1e9:.1f} GB"
    if estimate.gpu_memory_bytes is not None:
        memory += f", and {estimate.gpu_memory_bytes / 1e9:.1f} GB on the GPU"
    views = ""
    if estimate.views_bytes:
        views = f"views:  {estimate.views_bytes / 1e6:,.1f} MB on disk, while a stage learns from them\n"
    if estimate.steps:
        timed = f"        steps timed: {steps}, after one each to warm up\n"
        epochs = f"{optim.epochs} epoch{'s' if optim.epochs > 1 else ''} a task"
    else:
        timed, epochs = "", "one pass each: nothing trains"
    return (
        f"time:   about {duration(estimate.seconds)} ({parts})\n"
        f"memory: about {memory}\n"
        f"{views}"
        f"how:    on {optim.device} in {optim.precision}, with images of task {estimate.task}, the largest, "
        "just now:\n"
        f"{timed}"
        f"        images tested: {estimate.tested}; images/s: {speeds}\n"
        f"        × all images, {epochs}; tests after every task; without writing checkpoints"
    )
