"""What φ is made of, and random numbers that never change."""

from __future__ import annotations

import numpy as np
import pytest

from cdl_deploy.closed_form.features import FeatureMap, RandomProjection
from cdl_deploy.closed_form.stable_random import CHUNK, normals, words
from cdl_deploy.errors import OptionError


def test_words_are_splitmix64s():
    """The published first outputs for seeds 0 and 1234567."""
    assert [hex(word) for word in words(0, 0, 3)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert words(1234567, 0, 3).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert words(1234567, 2, 1).tolist() == [9817491932198370423]
    assert words(2**64 - 1, 0, 1).dtype == np.uint64


def test_normal_numbers_word_by_word():
    mask, state = (1 << 64) - 1, 42
    expected = []
    for _ in range(4):
        total = 0
        for _ in range(3):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            z ^= z >> 31
            total += sum((z >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
        expected.append((2 * total - 12 * 65535) / 131072)
    assert normals(42, 2, 2).ravel().tolist() == expected


def test_they_stay_the_same_for_ever():
    assert normals(7, 3).tolist() == FIXED
    assert (normals(7, 1000).astype(np.float32) == normals(7, 1000)).all()  # exact in float32
    assert normals(7, 2, 5).ravel().tolist() == normals(7, 10).tolist()
    many = normals(7, CHUNK + 5)
    assert many[:10].tolist() == normals(7, 10).tolist()
    assert many[-5:].tolist() != many[:5].tolist()


FIXED: list[float] = [-0.67181396484375, -0.2457122802734375, 0.29296875]


def test_they_are_normal_enough():
    values = normals(1, 400_000)
    assert values.mean() == pytest.approx(0, abs=0.006)
    assert values.var() == pytest.approx(1, abs=0.01)
    assert (values**4).mean() == pytest.approx(2.9, abs=0.05)  # 3 for a normal number
    assert (np.abs(values) > 1.959964).mean() == pytest.approx(0.05, abs=0.002)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.006
    assert abs(np.corrcoef(normals(1, 5000), normals(2, 5000))[0, 1]) < 0.06


def test_the_order_of_the_steps():
    tokens = {"class": np.array([[3.0, 0.0]], np.float32), "kd": np.array([[0.0, 4.0]], np.float32)}
    mapping = FeatureMap.parse("class+kd", normalise=True, projection=RandomProjection(7, seed=5))
    joined = mapping.join(tokens)
    assert joined.tolist() == [[3, 0, 0, 4]]
    expected = np.maximum(np.array([[0.6, 0, 0, 0.8]]) @ normals(5, 4, 7), 0)
    np.testing.assert_allclose(mapping.transform(joined), expected)
    assert (mapping.dimension(4), FeatureMap().dimension(4)) == (7, 4)
    assert mapping.transform(np.zeros((1, 4))).tolist() == [[0.0] * 7]
    assert FeatureMap.parse("kd+class").join(tokens).tolist() == [[0, 4, 3, 0]]
    assert FeatureMap().transform(np.ones((1, 2), np.float16)).dtype == np.float64


@pytest.mark.parametrize("name", ["class", "class+kd", "class+patches", "class+patches@9+patches"])
def test_names(name):
    assert FeatureMap.parse(name).name == name


@pytest.mark.parametrize("name", ["", "class+", "cls", "class+class", "patches@x", "patches@-1", "patches@01"])
def test_names_that_are_none(name):
    with pytest.raises(
        OptionError, match=r"the features are '.*', expected some of class, kd, patches and patches@BLOCK"
    ):
        FeatureMap.parse(name)


def test_projections_that_cannot_be():
    with pytest.raises(OptionError, match="random features are 0, expected 1 to 65536"):
        RandomProjection(0, 0)
    with pytest.raises(OptionError, match="the seed of the random features is -1"):
        RandomProjection(5, -1)
