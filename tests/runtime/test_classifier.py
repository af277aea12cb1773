"""`Classifier` against numpy: any kind of source, any batch size, any number of threads."""

from __future__ import annotations

import itertools
import pickle  # noqa: TID251  as spawned processes do
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import cdl_deploy
from cdl_deploy import Classifier
from cdl_deploy.data.images import load_image, to_tensor
from cdl_deploy.errors import BundleError, DataError, OptionError
from cdl_deploy.runtime.bundle import encode_metadata


def test_names_colours(model_path, photos):
    results = list(Classifier(model_path).predict(photos.values()))
    assert [r.label for r in results] == ["red", "green", "blue"]
    assert [r.index for r in results] == [0, 1, 2]
    assert [r.task for r in results] == [1, 1, 2]  # the tasks are (green, red), (blue, grün ✓)


def test_probabilities_are_numpys(model_path, tiny):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(7)]
    batch = np.stack([to_tensor(load_image(a), tiny.bundle().preprocessing) for a in arrays])
    expected = tiny.probabilities(batch)
    for batch_size in (1, 3, 7, 32):
        results = list(Classifier(model_path, threads=1).predict(arrays, batch_size=batch_size, top_k=4))
        for result, row in zip(results, expected, strict=True):
            order = np.argsort(-row)
            assert [label for label, _ in result.top_k] == [tiny.classes[i] for i in order]
            np.testing.assert_allclose([p for _, p in result.top_k], row[order], atol=1e-6)
            assert (result.label, result.probability) == result.top_k[0]


def test_one_image_of_any_kind(model_path, photos):
    classifier = Classifier(str(model_path))
    array = np.asarray(Image.open(photos["blue"]))
    for source in (photos["blue"], str(photos["blue"]), Image.open(photos["blue"]), array, array[None]):
        assert [r.label for r in classifier.predict(source)] == ["blue"]
    assert list(classifier.predict([])) == []


def test_top_k(model_path, photos):
    classifier = Classifier(model_path)
    assert [len(next(classifier.predict(photos["red"], top_k=k)).top_k) for k in (1, 3, 100)] == [1, 3, 4]


def test_endless_source_is_read_a_batch_at_a_time(model_path, photos):
    taken = 0

    def camera():
        nonlocal taken
        for path in itertools.cycle(photos.values()):
            taken += 1
            yield path

    results = Classifier(model_path).predict(camera(), batch_size=4)
    assert [r.label for r in itertools.islice(results, 6)] == ["red", "green", "blue"] * 2
    assert taken == 8


def test_bad_image_after_the_results_before_it(model_path, photos, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    results = Classifier(model_path).predict([photos["red"], photos["blue"], tmp_path / "bad.jpg", photos["green"]])
    assert [next(results).label, next(results).label] == ["red", "blue"]
    with pytest.raises(DataError, match=r"bad\.jpg: not an image of a known format"):
        next(results)


def test_many_threads_use_one_classifier(model_path, photos):
    classifier = Classifier(model_path)
    paths = list(photos.values()) * 5

    def labels(_: int) -> list[str]:
        return [r.label for r in classifier.predict(paths, batch_size=4)]

    with ThreadPoolExecutor(4) as pool:
        assert all(result == ["red", "green", "blue"] * 5 for result in pool.map(labels, range(12)))


def test_bad_options(model_path, tmp_path):
    for options, message in (
        ({"threads": 0}, "threads is 0, expected at least 1"),
        (
            {"providers": ["CPUExecutionProvidr"]},
            "knows no provider 'CPUExecutionProvidr', expected one of .*; did you mean 'CPUExec",
        ),
    ):
        with pytest.raises(OptionError, match=message):
            Classifier(model_path, **options)
    for options in ({"batch_size": 0}, {"top_k": 0}):
        with pytest.raises(OptionError, match="is 0, expected at least 1"):  # at once, not at the first result
            Classifier(model_path).predict([], **options)
    with pytest.raises(BundleError, match="No such file or directory; expected an"):
        Classifier(tmp_path / "none.onnx")
    assert Classifier(model_path, providers=["CPUExecutionProvider"]).bundle.role == "student"


def test_import_is_light():
    code = (
        "import sys, cdl_deploy; print(cdl_deploy.__version__); dir(cdl_deploy);"
        "print([m for m in ('numpy', 'onnxruntime', 'PIL', 'torch', 'typer', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split("\n")[:2] == [cdl_deploy.__version__, "[]"]


def test_runtime_needs_no_torch():
    code = (
        "import sys; from cdl_deploy import Classifier; import cdl_deploy.runtime.predict, cdl_deploy.bench;"
        "import cdl_deploy.cli;"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'timm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="module 'cdl_deploy' has no attribute 'Clasifier'"):
        _ = cdl_deploy.Clasifier


flips = st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4)


@given(changes=flips, share=st.floats(0.5, 1.5))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_models_run_or_are_refused(tmp_path, tiny, changes, share):
    content = bytearray(tiny.set_metadata(tiny.build(), encode_metadata(tiny.bundle())).SerializeToString())
    del content[int(len(content) * share) :]
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    message = str(path)
    try:
        (prediction,) = Classifier(path, threads=1).predict(np.zeros((9, 9, 3), dtype=np.uint8))
        assert prediction.label
    except BundleError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


def test_a_classifier_can_be_pickled(model_path, photos, monkeypatch, tmp_path):
    """Spawned processes, joblib and Spark hand it on; it opens its file again, from wherever that is."""
    monkeypatch.chdir(model_path.parent)
    pickled = pickle.dumps(Classifier(model_path.name, threads=1))
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickled)  # noqa: S301
    assert next(again.predict(photos["red"])).label == "red"


def test_a_provider_that_is_missing_says_what_brings_it(model_path, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.get_all_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    for installed, message in (
        (["onnxruntime"], r"only CPUExecutionProvider: it comes with onnxruntime-gpu, which takes onnxruntime's place"),
        (["onnxruntime", "onnxruntime-gpu"], "onnxruntime beside it has replaced its files; do: pip uninstall -y"),
        (["onnxruntime-gpu"], "onnxruntime-gpu is installed but finds no such device, driver or library"),
    ):
        monkeypatch.setattr("cdl_deploy.runtime.providers._is_installed", installed.__contains__)
        with pytest.raises(OptionError, match=message):
            Classifier(model_path, providers=["CUDAExecutionProvider"])
