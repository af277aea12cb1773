"""Part of benchmarks/learn.py: are classes that come one by one on a device known as well as those that came at once?

Both ways read the same features of the same images, as does a softmax head that is trained by gradients (Adam, as
Teachable Machine does): on each new class's images alone as they come, and on all images of all classes, which have to
be kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cdl_deploy
from cdl_deploy import Classifier, Learner
from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.learn.addition import Rows

Files = dict[str, dict[str, list[Path]]]
"""Images by split and class."""
SEED = 0


def folder_of_digits(folder: Path) -> Files:
    """scikit-learn's digits as image files."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    parts = train_test_split(loaded.images, loaded.target, test_size=0.3, random_state=SEED, stratify=loaded.target)
    found: Files = {"train": {}, "test": {}}
    for split, images, labels in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(image * 255 / 16)).resize((64, 64)).save(path)
            found[split].setdefault(str(label), []).append(path)
    return found


def folder_of_photographs(data: Path, folder: Path, classes: int, images: int) -> Files:
    """Links to some of CIFAR-100: `classes` drawn by the seed, and `images` of each in both splits."""
    names = sorted(path.name for path in (data / "train").iterdir())
    chosen = [names[place] for place in np.random.default_rng(SEED).permutation(len(names))[:classes]]
    found: Files = {"train": {}, "test": {}}
    for split, of_split in found.items():
        for name in chosen:
            (folder / split / name).mkdir(parents=True)
            for path in sorted((data / split / name).iterdir())[:images]:
                link = folder / split / name / path.name
                link.symlink_to(path.resolve())
                of_split.setdefault(name, []).append(link)
    return found


def compare(folder: Path, files: Files, **options: Any) -> dict[str, float]:
    """Percent right of all test images by way of learning; `folder` holds the images and gets run and models.

    The first half of the classes is learned by a run, whose backbone is frozen and has `options`; the others come then.
    """
    run, out = folder / "run", folder / "out"
    frozen: dict[str, Any] = {"tasks": 2, "method": "none", "distill": "none", "class_order": "natural", "seed": SEED}
    cdl_deploy.train(folder / "images", out=run, **frozen, **options)
    export_run(run, out, ExportOptions(teacher=False, latency=False), after=1)
    path = out / "student.onnx"
    one, once = Learner(path), Learner(path)
    later = {name: paths for name, paths in sorted(files["train"].items()) if name not in one.classes}
    known = {name: paths for name, paths in files["train"].items() if name in one.classes}
    for name, paths in later.items():
        one.add(name, paths)
    once.add_classes(later)
    test = one.reader.held(files["test"])
    found = {}
    for way, learner in (("one by one", one), ("at once", once)):
        learner.save(out / "learned.onnx")
        classifier = Classifier(out / "learned.onnx")
        said = [item.label for item in classifier.predict([path for paths in files["test"].values() for path in paths])]
        found[way] = 100 * float(np.mean([label == true for label, true in zip(said, test.labels, strict=True)]))
    train = one.reader.held(known | later)
    stages = [tuple(known), *((name,) for name in later)]
    found["gradients, new class alone"] = by_gradient(train, test, stages)
    found["gradients, all images kept"] = by_gradient(train, test, [tuple(known | later)])
    return found


def by_gradient(train: Rows, test: Rows, stages: Sequence[tuple[str, ...]], epochs: int = 50) -> float:
    """A softmax head trained with Adam, on the images of each stage's classes alone; percent right."""
    import torch

    torch.manual_seed(SEED)
    names = sorted(set(train.labels))
    mean, spread = train.features.mean(axis=0), train.features.std(axis=0) + 1e-6
    rows, tests = (torch.from_numpy((part.features - mean) / spread).float() for part in (train, test))
    places = torch.tensor([names.index(label) for label in train.labels])
    head = torch.nn.Linear(rows.shape[1], len(names))
    for stage in stages:
        own = torch.tensor([at for at, label in enumerate(train.labels) if label in stage])
        optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
        for _ in range(epochs):
            for some in own[torch.randperm(len(own))].split(32):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(head(rows[some]), places[some]).backward()
                optimiser.step()
    with torch.no_grad():
        said = head(tests).argmax(dim=1).tolist()
    return 100 * float(np.mean([names[place] == label for place, label in zip(said, test.labels, strict=True)]))
