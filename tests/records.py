"""A run's record made up for tests that read no more than that."""

from __future__ import annotations

from typing import Any

METRICS = (
    "final_average_accuracy", "average_incremental_accuracy", "forgetting", "forgetting_standard", "backward_transfer",
)  # fmt: skip


def finished_task(number: int, classes: list[str], **changes: Any) -> dict[str, Any]:
    """An entry of `tasks` in run.json."""
    return {
        "number": number, "classes": classes, "known_classes": [], "data": "digits", "train_images": 8,
        "test_images": 4, "data_fingerprint": "d", "test_fingerprint": "t", "kept_tests": [],
        "optim": {"epochs": 1, "batch_size": 4, "lr": 0.001}, "teacher_run": None,
        "finished": "2026-11-28T06:51:46+00:00", "seconds": {"student": 1.5},
        **changes,
    }  # fmt: skip


def backbone(**changes: Any) -> dict[str, Any]:
    """An entry of `backbones` in run.json."""
    return {
        "model": "mini_student.glyphs", "source": "package", "sha256": "abc", "image_size": 32, "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 1.0, "parameters": 1000,
        **changes,
    }  # fmt: skip


def results(tasks: int, accuracy: float = 80.0) -> dict[str, Any]:
    """The entry of a learner in run.json, with a metric that is like no other for every name."""
    matrix = [[accuracy] * (row + 1) for row in range(tasks)]
    return {**{name: accuracy + 1.7 * i for i, name in enumerate(METRICS)}, "accuracy_matrix": matrix}


def run_json(count: int = 2, has_teacher: bool = True, **changes: Any) -> dict[str, Any]:
    """A whole run.json of a run that has finished `count` tasks, each of two classes."""
    plan: dict[str, Any] = {"data": "digits", "holdout": None, "skip_bad": False, "known_classes": [], "optim": {}}
    names = [[f"{2 * i}", f"{2 * i + 1}"] for i in range(count)]
    return {
        "format_version": 2,
        "kind": "cdl-deploy run",
        "producer": {"name": "cdl-deploy", "version": "0.0.1"},
        "status": "finished",
        "student": results(count),
        "teacher": results(count, 90.0) if has_teacher else None,
        "tasks": [finished_task(i + 1, classes) for i, classes in enumerate(names)],
        "plans": [{**plan, "classes": classes} for classes in names],
        "config": {"data": {}, "models": {}, "method": {}, "optim": {"epochs": 1, "seed": 0}},
        "preprocessing": {"size": 32, "resize": 32, "interpolation": "bicubic", "augmentation": "gentle"},
        "backbones": {role: backbone() for role in ("student", "teacher")[: 2 if has_teacher else 1]},
        "skipped_images": [],
        **changes,
    }
