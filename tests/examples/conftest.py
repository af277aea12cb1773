"""A model, real photographs, and what Python says about them: the apps in other languages must say the same.

The photographs are those that scikit-learn and matplotlib bring along, as they are and in the forms in which
photographs come: turned by EXIF, grey, progressive, PNG, smaller than the model's input, under names beyond ASCII.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

import cdl_deploy
from cdl_deploy.export import ExportOptions, export_run

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES = PROJECT / "examples"
BUILT = PROJECT / "build" / "examples"
EXIF_ORIENTATION = 0x0112
NEW = "digit 7"
TRAINED, TAUGHT, TESTED = 30, 20, 20  # images a class
PROBABILITY_TOLERANCE = 0.02  # JPEG decoders differ by a grey level or two


@dataclass(frozen=True)
class Answer:
    """One row that an app printed."""

    path: str
    label: str
    probability: float
    task: str
    """Empty where none was selected."""


def answers(output: str) -> list[Answer]:
    """The rows of an app's output, which all apps write alike."""
    rows = [line.split("\t") for line in output.splitlines()]
    return [Answer(path, label, float(probability), *task or [""]) for path, label, probability, *task in rows]


def run_app(*command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder of examples; it must exit as told."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=EXAMPLES, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def student(small_bundle: Path) -> Path:
    """The model that all apps run."""
    return small_bundle / "student.onnx"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real photographs as JPEG and PNG files."""
    folder = tmp_path_factory.mktemp("photographs")
    sources = [
        *(Path(name) for name in sklearn.datasets.load_sample_images().filenames),
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    ]
    for source in sources:
        shutil.copy(source, folder)
    temple, flower, portrait = (Image.open(source) for source in sources)
    flower.save(folder / "flower.png")
    flower.crop((200, 100, 500, 400)).save(folder / "Größe und Blüte ✓.jpg", quality=95)
    temple.crop((0, 0, 300, 140)).save(folder / "sky, progressive.jpg", quality=90, progressive=True)
    temple.convert("L").save(folder / "grey.jpg", quality=95)
    portrait.resize((23, 19)).save(folder / "small.png")
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[EXIF_ORIENTATION] = orientation
        portrait.crop((0, 0, 512, 300)).save(folder / f"turned {orientation}.jpg", quality=95, exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run/` is learned, of nine digits; `new/` is taught, of the tenth; `test/` has images of all of them."""
    root = tmp_path_factory.mktemp("digits")
    loaded, seen = sklearn.datasets.load_digits(), dict.fromkeys(range(10), 0)
    order = np.random.default_rng(0).permutation(len(loaded.target))  # in the file one writer follows another
    for pixels, digit in zip(loaded.images[order], loaded.target[order], strict=True):
        number, name = seen[digit], f"digit {digit}"
        seen[digit] += 1
        own = "new" if name == NEW else "run/train"
        split = own if number < TRAINED else "test" if number < TRAINED + TESTED else None
        if split is None or (split == "new" and number >= TAUGHT):
            continue
        path = root / split / name / f"{digit}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels * 255 / 16)).resize((64, 64)).save(path)
    return root


@pytest.fixture(scope="session")
def learnable(digits: Path) -> Path:
    """A model of nine digits with its statistics beside it."""
    data = digits / "run"
    (data / "test").symlink_to(data / "train")  # the run asks for some; what it measures there is not looked at
    cdl_deploy.train(data, tasks=3, method="none", distill="none", out=digits / "trained")
    export_run(digits / "trained", digits / "out", ExportOptions(teacher=False, latency=False))
    return digits / "out" / "student.onnx"


@pytest.fixture(scope="session")
def python_answers(student: Path, photographs: list[Path]) -> list[Answer]:
    """What examples/python prints."""
    return answers(run_app(sys.executable, "python/classify.py", student, *photographs).stdout)


def check_same(got: list[Answer], expected: list[Answer]) -> None:
    """The same photographs, classes and tasks, in the same order, with all but the same probabilities."""
    assert [(row.path, row.label, row.task) for row in got] == [(row.path, row.label, row.task) for row in expected]
    assert [row.probability for row in got] == pytest.approx(
        [row.probability for row in expected], abs=PROBABILITY_TOLERANCE
    )
