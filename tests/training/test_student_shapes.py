"""benchmarks/student_shapes.py: the cost of a shape, by torch's own counter; the table, from the record beside it."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import student_shapes


@pytest.mark.parametrize(("depth", "side"), [(1, 28), (6, 98), (11, 70)])
def test_multiply_adds_are_what_torch_counts(depth, side):
    with torch.device("meta"):
        vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=side)
        vit.blocks = vit.blocks[:depth]
        with FlopCounterMode(display=False) as counter:
            vit.forward_features(torch.zeros(1, 3, side, side))
    assert counter.get_total_flops() == 2 * student_shapes.multiply_adds(depth, side)


def test_the_table_has_every_shape_and_the_page_is_of_its_record():
    record = json.loads(student_shapes.RECORD.read_text())
    found = student_shapes.table(record)
    assert found in student_shapes.PAGE.read_text()
    lines = {line.split("|")[1].strip(): line for line in found.splitlines() if line.startswith("| ")}
    assert list(lines)[1:] == [str(depth) for depth in range(6, 13)]
    for shape in record["shapes"]:
        plain, earlier = (f"{shape[name]:.1f}" for name in ("slda", "slda, earlier blocks too"))
        assert f"{plain} → {earlier} (cost {shape['share']:.2f})" in lines[str(shape["blocks"])]
        assert shape["share"] == pytest.approx(
            student_shapes.multiply_adds(shape["blocks"], shape["image_size"]) / student_shapes.multiply_adds(12, 98),
            abs=1e-4,
        )
