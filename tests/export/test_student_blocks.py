"""`--student-blocks N`: the student is the first blocks of its model, in the run, when a task is added, in the file.

Oracle: a hook on timm's own network of all blocks.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from cdl_deploy.errors import OptionError
from cdl_deploy.run.record import read_record
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.training.backbones.loading import (
    cut,
    load_backbone,
    load_weights_file,
    rebuild_backbone,
    weights_hash,
)
from cdl_deploy.training.checkpoint import load_run
from tests.export.conftest import NAMES, code_of
from tests.tiny_models import write_tiny_weights
from tests.training.conftest import pixels_of
from tests.training.naive import tokens_after

MODEL, DEPTH = "tiny_teacher_5", 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "weights"
    write_tiny_weights(folder)
    return folder / f"{MODEL}.safetensors"


def whole(weights, size=16):
    vit = timm.create_model(MODEL, num_classes=0, img_size=size)
    load_weights_file(vit, weights)
    return vit.eval()


def test_a_cut_backbone_is_the_first_blocks_of_the_whole(weights, tmp_path):
    vit = whole(weights)
    for count in (1, 3, DEPTH):
        backbone, info = load_backbone(MODEL, str(weights), None, blocks=count)
        assert (backbone.depth, info.blocks, info.words) == (count, count, f"{MODEL}, first {count} blocks")
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(backbone.vit.forward_features(images), tokens_after(vit, images, count - 1))
        per_block = sum(value.numel() for value in vit.blocks[0].parameters())
        all_values = sum(value.numel() for value in vit.parameters())
        assert info.parameters == all_values - (DEPTH - count) * per_block
        assert info.sha256 == weights_hash(backbone.vit)
    uncut = load_backbone(MODEL, str(weights), None)[1]
    assert "blocks" not in uncut.to_dict()
    assert uncut.words == MODEL
    file = tmp_path / "student.safetensors"
    from safetensors.torch import save_file

    save_file(load_backbone(MODEL, str(weights), None, blocks=2)[0].vit.state_dict(), file)
    info = load_backbone(MODEL, str(weights), None, blocks=2)[1]
    assert rebuild_backbone(info, file).depth == 2
    with pytest.raises(OptionError, match="--student-blocks 2: other keeps its blocks under a name of its own: leave"):
        cut(torch.nn.Linear(1, 1), 2, "other")
    with pytest.raises(OptionError, match=f"--student-blocks is 9, but {MODEL} has {DEPTH} blocks: give 1 to {DEPTH}"):
        rebuild_backbone(dataclasses.replace(info, blocks=9), file)


def test_trained_added_to_and_exported_by_command(weights, photos, tmp_path, capsys):
    """Three of five blocks, on smaller images than the weights are for, and an earlier block's patches beside them."""
    run, first = tmp_path / "run", tmp_path / "first"
    for split in ("train", "test"):
        for name in NAMES[:2]:
            shutil.copytree(photos / split / name, first / split / name)
        for name in NAMES[2:]:
            shutil.copytree(photos / split / name, tmp_path / "second" / split / name)
    student = ["--student", MODEL, "--student-weights", str(weights)]
    cut = ["--student-blocks", "3", "--image-size", "8", "--features", "class+patches+patches@0"]
    assert code_of(["train", "--data", first, "--out", run, "--tasks", 1, *student, *cut]) == 0
    assert code_of(["train", run, "--add", tmp_path / "second"]) == 0
    record = read_record(run)
    assert record.backbones["student"].blocks == 3
    assert sorted(record.classes) == sorted(NAMES)
    assert code_of(["export", run, "--onnx", "--out", tmp_path / "out"]) == 0
    bundle = read_bundle(tmp_path / "out/student.onnx")
    assert bundle.weights.model == f"{MODEL}, first 3 blocks"
    assert bundle.parity.top1_agreement == 1

    classifier = Classifier(bundle.path)
    files = sorted((photos / "test").rglob("*.png"))
    images = np.stack([classifier.prepare(path) for path in files])
    session = onnxruntime.InferenceSession(bundle.path)
    logits, features = session.run(["logits", "features"], {"image": images})
    info = record.backbones["student"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    seen, vit = (pixels_of(record, files) / 255 - mean) / std, whole(weights, size=8)
    last, early = (tokens_after(vit, seen, block) for block in (2, 0))
    wanted = torch.cat([last[:, 0], last[:, 1:].mean(dim=1), early[:, 1:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(features, wanted, atol=1e-4)
    closed_form = load_run(run)[1].student.closed_form
    with torch.no_grad():
        np.testing.assert_allclose(logits, closed_form(wanted), atol=1e-3)

    capsys.readouterr()
    assert code_of(["train", "--data", photos, "--out", tmp_path / "none", *student, "--student-blocks", 6]) == 2
    error = capsys.readouterr().err
    assert f"--student-blocks is 6, but {MODEL} has 5 blocks: give 1 to 5" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_another_number_of_blocks_than_the_lenders_is_named(weights, photos, tmp_path, capsys):
    student = ["--student", MODEL, "--student-weights", weights, "--teacher", MODEL, "--teacher-weights", weights]
    run = ["train", "--data", photos, "--tasks", 1, "--epochs", 1, "--preset", "kdp", "--method", "l2p", *student]
    assert code_of([*run, "--student-blocks", 3, "--out", tmp_path / "lender"]) == 0
    capsys.readouterr()
    borrowing = [*run, "--teacher-run", tmp_path / "lender", "--out", tmp_path / "none"]
    for given, found in ((["--student-blocks", 2], f"{MODEL}, first 2 blocks"), ([], MODEL)):
        assert code_of([*borrowing, *given]) == 2
        error = capsys.readouterr().err
        assert f"has another student, {MODEL}, first 3 blocks, and this run {found}: its weights must be" in error
        assert not (tmp_path / "none").exists()
    assert code_of([*borrowing, "--student-blocks", 1]) == 2
    assert "ends before: choose a deeper one, or more --student-blocks where that is given" in capsys.readouterr().err
