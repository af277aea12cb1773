"""`cdl learn`: new classes, and better known ones, for a model on the machine where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdl_deploy.cli.output import echo, echo_json
from cdl_deploy.counted import counted
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.learn.learner import Learner
    from cdl_deploy.learn.review import Review

EXAMPLES = """
cdl learn student.onnx photos/ -o new.onnx
cdl learn student.onnx --class screw a.jpg b.jpg -o student.onnx
cdl learn student.onnx photos/ --review --held-out test/ --dry-run
cdl learn student.onnx --undo -o student.onnx
cdl learn student.onnx photos/ -o new.onnx --patch screws.cdlup
"""
FEW = 5
"""Images of a new class below which a line says how little that is."""
SHOWN = 5
"""Odd images that are named."""


def command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Exported model (.onnx), its statistics beside it.", show_default=False),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR",
            help="Folder with a folder of images for each class; with --class: images, folders, patterns.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="NEW", help="File to write; may be MODEL.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="All images are of this class, new or known.", show_default=False),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last addition back, exactly.")] = False,
    forget: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Take a class away for good.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be learned, and write nothing.")] = False,
    review: Annotated[
        bool,
        typer.Option(
            "--review", help="Show nearest classes, confusions, and images that do not look like their class."
        ),
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of images by class that are never learned: accuracy before and after; from 100 images on, "
            "also the threshold of the unknown.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Write nothing if the classes known before lose more than this on --held-out.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    patch: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write an update (.cdlup) too, for other devices with MODEL.", show_default=False
        ),
    ] = None,
    as_new: Annotated[
        bool, typer.Option("--as-new", help="A name that differs from a known one in spelling alone is a new class.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads that decode and run the model. Default: all cores that this process may use.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Learn new classes, or known ones better, without PyTorch and without old images.

    The model reads its own features of the images and adds them to the sums beside it; a new head is solved from all
    sums. What it knew before it knows as exactly as if all images had been learned at once. NEW, its statistics and its
    description appear together, or not at all.
    """
    _check(images, output, name, undo, forget, dry_run, review, held_out, max_drop, patch)
    with require_extra("cdl learn"):
        from cdl_deploy.learn.learner import Learner
    with Learner(model, threads) as learner:
        record: dict[str, Any] = {"path": None if dry_run or output is None else str(output)}
        found = rows = None
        before = learner.classes
        if undo:
            record["undone"] = learner.additions[-1] if learner.additions else None
            learner.undo()
        elif forget is not None:
            learner.forget(forget)
            record["forgotten"] = forget
        else:
            found, rows = _learn(learner, images or [], name, review, held_out, as_new, skip_bad, record)
        if found is not None and not as_json:
            _show(found)
        if found is not None and found.drop is None and max_drop is not None:
            raise OptionError(
                f"--held-out {held_out} has no image of a class known before, so no drop can be measured: "
                "add some, or leave --max-drop out"
            )
        if found is not None and found.drop is not None and max_drop is not None and found.drop > max_drop:
            raise OptionError(
                f"the classes known before would fall from {found.before:.1f} to {found.after:.1f} % of "
                f"{counted(found.held_out, 'held-out image')}, more than --max-drop {max_drop:g}: nothing was written"
            )
        if not dry_run and output is not None:
            learner.save(output, held_out=rows, before_commit=_patch_maker(model, patch))
        told = _told(learner, before, record)
        record |= {"classes": list(learner.classes), "images": learner.images}
        if patch is not None and not dry_run:
            record["patch"] = str(patch)
    if as_json:
        echo_json(record)
    else:
        where = f"{model}: would have" if dry_run else f"{output}:"
        echo(f"{where} {told}")


def _check(
    images: list[str] | None,
    output: Path | None,
    name: str | None,
    undo: bool,
    forget: str | None,
    dry_run: bool,
    review: bool,
    held_out: str | None,
    max_drop: float | None,
    patch: Path | None,
) -> None:
    """Raise `OptionError` for options that do not go together."""
    asked = [
        what for what, wanted in (("images", images), ("--undo", undo), ("--forget", forget is not None)) if wanted
    ]
    if len(asked) > 1:
        raise OptionError(f"{asked[0]} and {asked[1]} are two things: do one after the other")
    if not asked:
        what = "images of it" if name is not None else "a folder with a folder of images for each class"
        raise OptionError(f"there is nothing to learn: give {what}, or --undo, or --forget CLASS")
    if name is None and images and len(images) > 1:
        raise OptionError(
            f"{len(images)} folders are given, expected one: put the classes into one, or say --class NAME"
        )
    if output is None and not dry_run:
        raise OptionError("no file to write is given: add -o NEW.onnx, or --dry-run to see what would be learned")
    if not images and (review or held_out is not None):
        raise OptionError("--review and --held-out are about new images: leave them out")
    if max_drop is not None and held_out is None:
        raise OptionError("--max-drop is measured on images that are never learned: add --held-out DIR")
    if patch is not None and output is not None and patch.resolve() == output.resolve():
        raise OptionError("--patch and -o are one file: choose another name for the update")


def _learn(
    learner: Learner,
    images: list[str],
    name: str | None,
    wanted: bool,
    held_out: str | None,
    as_new: bool,
    skip_bad: bool,
    record: dict[str, Any],
) -> tuple[Review | None, Any]:
    """Add the images; the review, and the rows of held-out images, where they are wanted."""
    from cdl_deploy.cli.image_progress import image_progress
    from cdl_deploy.data.folder import find_images, find_test_images
    from cdl_deploy.data.paths import expand_paths
    from cdl_deploy.learn.review import review

    if name is not None:
        given = {name: list(expand_paths(images))}
    else:
        _refuse_splits(Path(images[0]))
        given = {key: [str(path) for path in paths] for key, paths in find_images(Path(images[0])).items()}
    apart = None if held_out is None else find_test_images(Path(held_out), None)
    looked_at = wanted or apart is not None
    before, known = learner.head() if looked_at else None, set(learner.classes)
    with image_progress() as show:
        added = learner.add_classes(
            given,
            as_new=as_new,
            skip_bad=skip_bad,
            keep_rows=looked_at,
            on_images=lambda done, total: show("learning", done, total),
        )
        rows = None
        if apart is not None:
            rows = learner.reader.held(apart, skip_bad, lambda done, total: show("held-out", done, total))
    counts = dict(zip(added.statistics.classes, map(int, added.statistics.counts), strict=True))
    for line in added.skipped:
        echo(f"left out: {line}", err=True)
    for key, count in counts.items():
        if key not in known and count < FEW:
            echo(
                f"note: class '{key}' is learned from {counted(count, 'image')}: that is little to go by, "
                "20 of different views are better",
                err=True,
            )
    record |= {"added": counts, "new": [key for key in counts if key not in known], "skipped": list(added.skipped)}
    if before is None or added.rows is None:
        return None, rows
    found = review(before, learner.head(), learner.total, added.statistics, added.rows, rows, learner.rule.shrinkage)
    record["review"] = found.to_dict()
    return found, rows


def _refuse_splits(root: Path) -> None:
    """Raise `OptionError` for a data set with train/CLASS and test/CLASS, whose classes these two are not."""
    from cdl_deploy.data.folder import TEST_FOLDERS, TRAIN_FOLDERS

    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        split = folder.name.lower() in TRAIN_FOLDERS + TEST_FOLDERS and folder.is_dir()
        if split and any(below.is_dir() for below in folder.iterdir()):
            raise OptionError(
                f"{root} has {folder.name}/ with folders in it, which is no class: give the folder that has a folder "
                f"for each class, such as {folder}"
            )


def _patch_maker(model: Path, patch: Path | None) -> Any:
    """What writes the update while the old model is still there."""
    if patch is None:
        return lambda path: None
    from cdl_deploy.update.patch import make_update

    return lambda path: make_update(model, path, patch)


def _told(learner: Learner, before: tuple[str, ...], record: dict[str, Any]) -> str:
    """On one line, what was done."""
    now = f"now {counted(len(learner.classes), 'class')}"
    if "forgotten" in record:
        return f"forgotten {record['forgotten']}; {now}"
    if "undone" in record:
        counts = ", ".join(f"{name} ({count})" for name, count in (record["undone"] or {}).items())
        return f"taken back {counts or 'an addition whose classes were all forgotten before'}; {now}"
    new = set(record["new"])
    parts = [
        f"{name} ({counted(count, 'image')}, {'new' if name in new else 'known before'})"
        for name, count in list(record["added"].items())[:8]
    ]
    more = len(record["added"]) - len(parts)
    rest = f" and {counted(more, 'class')} more" if more else ""
    return f"learned {', '.join(parts)}{rest}; {now}"


def _show(found: Review) -> None:
    """The review, for people."""
    if found.before is not None and found.after is not None:
        change = f"{found.before:.1f} → {found.after:.1f} %"
        echo(f"classes known before: {change} of {counted(found.held_out, 'held-out image')} right")
    if found.new is not None:
        echo(f"new classes: {found.new:.1f} % of {counted(found.held_out_new, 'held-out image')} right")
    for item in found.classes:
        near = ", ".join(f"{other.name} ({other.distance:.1f})" for other in item.nearest)
        echo(f"{item.name}: {counted(item.images, 'image')}; nearest classes, in standard deviations: {near or 'none'}")
        for what, counts in (("taken for", item.taken_for), ("takes from", item.taken_from)):
            if counts:
                echo(f"  {what} {', '.join(f'{other} ({count})' for other, count in counts.items())}")
    for odd in found.odd[:SHOWN]:
        echo(f"  {odd.name}: called {odd.label}, looks like {odd.looks_like} ({odd.probability:.0%})")
    if len(found.odd) > SHOWN:
        more = len(found.odd) - SHOWN
        echo(f"  … and {counted(more, 'image')} more that look{'s' * (more == 1)} like another class")
