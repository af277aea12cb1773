"""The runtime on an exported model: small pixels in a batch give what the graph gives for each whole photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from cdl_deploy import Classifier, predict_rows


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Soft colours, as lenses give them, in all proportions; one is turned by its EXIF data."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(300, 200), (97, 241), (64, 64), (33, 32), (500, 41)]):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1], exif=exif)
    return paths


def test_any_source_and_batch_gives_what_the_graph_gives(small_bundle: Path, photographs: list[Path]) -> None:
    model = small_bundle / "student.onnx"
    session = onnxruntime.InferenceSession(model)
    upright = [Image.open(path).convert("RGB") for path in photographs]
    upright[1] = upright[1].transpose(Image.Transpose.ROTATE_270)
    arrays = [np.asarray(image) for image in upright]
    names = ["topk_label", "topk_probability"]
    expected = [session.run(names, {"image": array[None]}) for array in arrays]

    classifier = Classifier(model)
    assert classifier.bundle.preprocessing.input == "image"
    rows = [row.prediction for row in predict_rows(classifier, photographs, batch_size=2, workers=2)]
    for found in (
        list(classifier.predict(photographs)),
        list(classifier.predict(upright, batch_size=1)),
        list(classifier.predict(arrays, batch_size=3)),
        rows,
    ):
        for prediction, (labels, probabilities) in zip(found, expected, strict=True):
            assert prediction is not None
            # PIL rounds once more than the graph, which is at most one grey level.
            of_graph = dict(zip(labels[0], probabilities[0], strict=True))
            assert dict(prediction.top_k) == pytest.approx(of_graph, abs=0.02)
            if probabilities[0][0] - probabilities[0][1] > 0.04:
                assert prediction.label == labels[0][0]
