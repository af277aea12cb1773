"""`cdl weights`: what a file is, which model it fits, and the same weights as timm's."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cdl_deploy.cli import main
from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.loading import load_backbone
from cdl_deploy.training.backbones.weights_files.fits import candidates, find_fits, measure
from cdl_deploy.training.backbones.weights_files.inspection import inspect_weights
from cdl_deploy.training.backbones.weights_files.weights import Weights
from tests.training import foreign_names as names


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    values = timm.create_model("mini_student", num_classes=0).state_dict()
    return {name: torch.randn(value.shape) for name, value in values.items()}


@pytest.fixture
def snapshot(state, tmp_path):
    """A classifier of transformers', as the hub has it."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    theirs = names.renamed(state, names.EMBEDDINGS, names.VIT_FILE, "encoder.layer.")
    theirs = {f"vit.{name}": value for name, value in theirs.items()}
    save_file(theirs | {"classifier.weight": torch.zeros(3, 64)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, "layer_norm_eps": 1e-12}))
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def cdl(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["weights", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_it_says_what_a_file_is_and_writes_timms(snapshot, state, tmp_path, capsys):
    code, out, err = cdl(capsys, snapshot, "--json", "--out", tmp_path / "new.safetensors")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said == {
        "file": str(snapshot / "model.safetensors"), "layout": "transformers' ViT", "prefix": "vit", "not_taken": [],
        "width": 64, "depth": 6, "patch": [8, 8], "heads": 2, "model": "mini_student", "image_size": 32,
        "also_fits": [], "nearest": None, "nearest_differs": None, "left_out": ["classifier.weight"],
        "pixels": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"},
        "said_by": ["preprocessor_config.json", "config.json"], "checked": None, "refused_by_train": None,
        "written": str(tmp_path / "new.safetensors"),
    }  # fmt: skip
    written = load_file(tmp_path / "new.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    with safe_open(tmp_path / "new.safetensors", "pt") as opened:
        config = json.loads(opened.metadata()["pretrained_cfg"])
    assert config["architecture"] == "mini_student"
    info = load_backbone("mini_student", str(tmp_path / "new.safetensors"), None)[1]
    assert (info.mean, info.interpolation, info.pixels, info.weights) == ((0.1, 0.2, 0.3), "bilinear", "file", None)


def test_the_table(snapshot, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cdl(capsys, snapshot)
    assert code == 0
    rows = {
        cells[1].strip(): cells[2].strip() for cells in (line.split("│") for line in out.splitlines() if "│" in line)
    }
    assert rows == {
        "file": f"{snapshot}/model.safetensors",
        "names": "transformers' ViT, under 'vit'",
        "network": "6 blocks, 64 wide, patches of 8x8 pixels, positions for 4x4 patches, 2 heads",
        "fits": "mini_student at 32x32",
        "pixels": "mean 0.1, 0.2, 0.3; std 0.4, 0.5, 0.6 (preprocessor_config.json, config.json)",
        "left out": "classifier.weight",
        "cdl train": f"--student mini_student --student-weights {snapshot}/model.safetensors",
    }


def test_what_cannot_be_done_is_one_line(state, snapshot, tmp_path, capsys):
    code, _, err = cdl(capsys, snapshot, "--out", tmp_path / "new.pth")
    assert (code, err) == (2, f"error: --out {tmp_path}/new.pth has the suffix '.pth', expected .safetensors\n")
    code, _, err = cdl(capsys, snapshot, "--model", "mini_teacher")
    assert (code, err) == (2, f"error: weights {snapshot} do not fit mini_teacher: they fit mini_student\n")
    deep = state | {f"blocks.6.{n.split('.', 2)[2]}": v for n, v in state.items() if n.startswith("blocks.5.")}
    save_file({name: value.clone() for name, value in deep.items()}, tmp_path / "deep.safetensors")
    code, out, _ = cdl(capsys, tmp_path / "deep.safetensors")
    assert code == 0
    assert "no model of timm's; nearest is mini_student" in out
    code, _, err = cdl(capsys, tmp_path / "deep.safetensors", "--out", tmp_path / "new.safetensors")
    assert code == 2
    assert "fit no model of timm's; nearest is mini_student: blocks.6." in err
    assert err.endswith("is not part of it, and 9 more\n")
    assert not (tmp_path / "new.safetensors").exists()


def test_a_writer_that_fails_leaves_the_old_file(snapshot, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new.safetensors"
    out.write_text("old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    code, _, err = cdl(capsys, snapshot, "--out", out)
    assert code == 2
    assert "No space left on device" in err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.safetensors", "snapshot"]


def meta(model, **changes):
    with torch.device("meta"):
        return timm.create_model(model, num_classes=0, **changes).state_dict()


@pytest.mark.parametrize(
    ("model", "change", "layout", "like", "size"),
    [
        ("vit_small_patch14_dinov2", {}, "transformers' DINOv2", "dinov2", 518),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 224}, "DINOv2's original names", "reg4_dinov2", 224),
        ("vit_small_patch16_dinov3", {}, "transformers' DINOv3", "dinov3", 256),
    ],
)
def test_which_model_shapes_are_of(model, change, layout, like, size, tmp_path):
    """Also where positions are for another image size than timm's."""
    tensors = {name: torch.zeros(value.shape) for name, value in meta(model, **change).items()}
    fits = find_fits(Weights(tmp_path, tensors, layout, like)).found
    assert (fits[0].model, fits[0].image_size) == (model, size)


def test_models_of_other_patches_or_widths_are_not_built():
    measured = measure(meta("vit_small_patch14_dinov2"))
    assert measured.words() == "12 blocks, 384 wide, patches of 14x14 pixels, positions for 37x37 patches"
    found = set(candidates(measured, of_eva=False))
    assert "vit_small_patch14_dinov2" in found
    assert not found & {"vit_base_patch14_dinov2", "vit_small_patch16_224", "vit_tiny_patch16_224"}


def test_it_takes_a_name_on_the_hub(snapshot, monkeypatch):
    from cdl_deploy.training.backbones import hub

    monkeypatch.setattr(hub, "located", lambda name: snapshot if name == "hf_hub:me/vit" else pytest.fail(name))
    assert inspect_weights("hf_hub:me/vit").model == "mini_student"
    with pytest.raises(WeightsError, match="do not fit mini_teacher"):
        inspect_weights("hf_hub:me/vit", "mini_teacher")
