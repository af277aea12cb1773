"""Take the pictures of the web page that the README shows: docs/images/web.png and web-phone.png.

pip install scikit-image            # brings some of the photographs
python -m tools.web_screenshot      # 2 minutes; needs Chromium, as the tests in tests/examples do

The page shows a real student. It learned six subjects in three tasks, from crops of six photographs that scikit-learn,
matplotlib and scikit-image bring along, and is shown the whole photographs. As it has seen parts of them, this says
nothing about accuracy.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.web_page import write_page
from cdl_deploy.training.loop import train
from tests.examples.browser import chromium, host

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PHOTOGRAPHS = {
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "dahlia": ("sklearn", "datasets/images/flower.jpg"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "portrait": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
"""Class → package and file in it, two a task."""

CROPS = {"train": 24, "test": 6}
SEED = 0


def photograph(name: str) -> Path:
    package, file = PHOTOGRAPHS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install scikit-image scikit-learn matplotlib")
    return Path(spec.origin).parent / file


def write_crops(folder: Path) -> None:
    """folder/train/CLASS/*.png and folder/test/CLASS/*.png: parts of each photograph, mirrored, lighter or darker."""
    random = np.random.default_rng(SEED)
    for name in PHOTOGRAPHS:
        whole = Image.open(photograph(name)).convert("RGB")
        for part, count in CROPS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                side = int(min(whole.size) * random.uniform(0.6, 1))
                left, top = (int(random.integers(0, edge - side + 1)) for edge in whole.size)
                crop = whole.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.LANCZOS)
                if random.random() < 0.5:
                    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                ImageEnhance.Brightness(crop).enhance(random.uniform(0.8, 1.2)).save(folder / part / name / f"{i}.png")


def write_site(folder: Path) -> Path:
    """Train, export, and write the page."""
    write_crops(folder / "photographs")
    tasks = [list(PHOTOGRAPHS)[i : i + 2] for i in range(0, len(PHOTOGRAPHS), 2)]
    (folder / "tasks.yaml").write_text("".join(f"- [{', '.join(task)}]\n" for task in tasks))
    config = RunConfig(
        DataConfig(str(folder / "photographs"), task_file=str(folder / "tasks.yaml")),
        ModelConfig(),
        MethodConfig(distill="none"),  # the picture is of the page; without a teacher it takes a tenth of the time
        OptimConfig(epochs=40, seed=SEED, device="cpu"),
    )
    train(config, folder / "run")
    export_run(folder / "run", folder / "export", ExportOptions(teacher=False))
    write_page(folder / "export" / "student.onnx", folder / "site")
    return folder / "site"


def main() -> None:
    """Write both pictures."""
    pictures: dict[str, dict[str, Any]] = {
        "web.png": {"viewport": {"width": 1000, "height": 800}, "color_scheme": "light"},
        "web-phone.png": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
    }
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, host(write_site(Path(folder))) as serving, chromium() as browser:
        for file, settings in pictures.items():
            with browser.new_context(**settings) as context:
                page = context.new_page()
                page.goto(serving.url)
                page.get_by_text("Works offline").wait_for()
                page.reload()  # the second visit: several threads
                page.get_by_text("Works offline").wait_for()
                shown = ["rocket", "cat", "dahlia"]  # one a task; the last comes first on the page
                page.set_input_files("#files", [photograph(name) for name in shown])
                page.locator(".result[data-label]").nth(len(shown) - 1).wait_for()
                page.screenshot(path=IMAGES / file, full_page=file == "web.png")
                print(f"docs/images/{file}: {(IMAGES / file).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
