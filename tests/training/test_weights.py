"""Backbones by name and by file; the shipped pair."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import digits
from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones import hub, mini
from cdl_deploy.training.backbones.loading import load_backbone, load_weights_file, rebuild_backbone
from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.typed_json import convert


@pytest.fixture
def student_file(tmp_path):
    model = timm.create_model("mini_student", num_classes=7)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    file = tmp_path / "student.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file, model.eval()


def test_safetensors_and_timm_checkpoints_load_alike(student_file, tmp_path):
    file, model = student_file
    checkpoint = tmp_path / "student.pth"
    torch.save({"state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}, "epoch": 3}, checkpoint)  # noqa: TID251
    image = torch.randn(2, 3, 32, 32)
    infos = []
    for path in (file, checkpoint):
        backbone, info = load_backbone("mini_student", str(path), None)
        infos.append(info)
        ours = backbone.final_norm(backbone.run_blocks(backbone.embed_normalised(image), 0, 6))
        torch.testing.assert_close(ours, model.forward_features(image), atol=1e-5, rtol=1e-5)
    assert infos[0].sha256 == infos[1].sha256
    assert infos[0].model == "mini_student"  # the tag is that of other weights


def test_weights_are_resampled_for_another_image_size(student_file):
    file, model = student_file
    backbone, info = load_backbone("mini_student", str(file), 48)
    assert info.image_size == 48
    theirs = timm.create_model("mini_student", num_classes=7, img_size=48)
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(model.state_dict()), theirs))
    image = torch.randn(1, 3, 48, 48)
    ours = backbone.run_blocks(backbone.embed_normalised(image), 0, 6)
    torch.testing.assert_close(backbone.final_norm(ours), theirs.eval().forward_features(image), atol=1e-5, rtol=1e-5)


def test_a_run_rebuilds_its_backbone_from_its_own_file(student_file, tmp_path):
    backbone, info = load_backbone("mini_student", str(student_file[0]), None)
    stored = tmp_path / "stored.safetensors"
    state = backbone.vit.state_dict()
    safetensors.torch.save_file(state, stored)
    again = rebuild_backbone(convert(type(info), json.loads(json.dumps(info.to_dict())), "student"), stored)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.vit.state_dict().values(), strict=True))
    state["norm.weight"] = state["norm.weight"] + 1e-6
    safetensors.torch.save_file(state, stored)
    with pytest.raises(WeightsError, match="does not hold the weights the run was trained on"):
        rebuild_backbone(info, stored)


def _evil(path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": {"x": Evil()}}, path)  # noqa: TID251


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.safetensors", lambda p: None, "does not exist"),
        ("short.safetensors", lambda p: p.write_bytes(b"12345"), "cannot read weights file"),
        ("text.pth", lambda p: p.write_text("hello"), "cannot read weights file"),
        ("list.pth", lambda p: torch.save([1, 2], p), "holds no state dict"),  # noqa: TID251
        ("evil.pth", _evil, "cannot read weights file"),
        (
            "empty.pth",
            lambda p: p.write_bytes(b""),
            "empty.pth is empty: the download or the copy did not",
        ),
        (
            "w.pth.gz",
            lambda p: p.write_bytes(b"\x1f\x8b\x08"),
            "w.pth.gz is a compressed file: unpack it first",
        ),
        (
            "w.h5",
            lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"),
            "is an HDF5 file, as Keras writes",
        ),
        (
            "other.safetensors",
            lambda p: safetensors.torch.save_file(
                {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8), "cls_token": torch.zeros(1, 1, 8)}, p
            ),
            r"model: cls_token has shape \(1, 1, 8\), expected \(1, 1, 64\); pos_embed is missing; .*, and \d+ more",
        ),
    ],
)
def test_bad_weights_are_one_clear_line(tmp_path, name, write, message, capsys):
    file = tmp_path / name
    write(file)
    with pytest.raises(WeightsError, match=message) as error:
        load_backbone("mini_student", str(file), None)
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out


def test_shapes_that_do_not_fit_are_named(student_file):
    vit = timm.create_model("mini_student", embed_dim=72, num_classes=0)
    state = safetensors.torch.load_file(student_file[0])
    safetensors.torch.save_file({n: v for n, v in state.items() if n in vit.state_dict()}, student_file[0])
    with pytest.raises(WeightsError, match=r"cls_token has shape \(1, 1, 64\), expected \(1, 1, 72\)"):
        load_weights_file(vit, student_file[0])


def test_mean_and_deviation_come_from_the_file(student_file):
    file, model = student_file
    assert load_backbone("mini_student", str(file), None)[1].pixels == "model"
    said = json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 48, 48]})
    state = dict(model.state_dict())
    for metadata in ({"pretrained_cfg": said}, {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"}):
        safetensors.torch.save_file(state, file, metadata)
        info = load_backbone("mini_student", str(file), None)[1]
        assert (info.mean, info.std, info.pixels) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "file")
        assert info.image_size == (48 if "pretrained_cfg" in metadata else 32)


def test_patches_of_another_size_are_refused(student_file):
    vit = timm.create_model("mini_student", num_classes=0, patch_size=4, img_size=16)
    with pytest.raises(WeightsError, match="are of patches of 8x8 pixels, and the model's are 4x4"):
        load_weights_file(vit, student_file[0])


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_r_s16_p8_224", "vit_base_patch16_xp_224"])
def test_what_is_no_plain_vit_is_refused_before_its_weights_are_fetched(model, monkeypatch):
    monkeypatch.setattr("cdl_deploy.training.backbones.loading._with_pretrained", lambda *_: pytest.fail("fetched"))
    with pytest.raises(WeightsError, match="the nearest that can, with weights, is"):
        load_backbone(model, None, None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_smal_patch16_224.augreg_in1k", r"did you mean 'vit_small_patch16_224\.augreg_in1k'"),
        ("vit_small", "did you mean 'vit_small_patch8_224'"),
        ("hf_hub:timm/vit_small_patch16_224.augreg_in1", "no weights tagged 'augreg_in1'; did you mean 'augreg_in1k'"),
        ("vit_smal_patch16_224", "'vit_smal_patch16_224' is unknown to timm; did you mean 'vit_small_patch16_224'"),
        ("vit_small_patch16_224.augreg_in1", "no weights tagged 'augreg_in1'; did you mean 'augreg_in1k'"),
        ("mini_studnet", "did you mean 'mini_student'"),
    ],
)
def test_unknown_models_offer_the_nearest(model, message):
    with pytest.raises(WeightsError, match=message):
        load_backbone(model, None, None)


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", _offline)
    with pytest.raises(WeightsError, match=r"cannot get pretrained weights of 'vit_tiny.*--teacher-weights"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k", None, None)


def test_a_model_that_nobody_pretrained_asks_for_a_file():
    with pytest.raises(
        WeightsError, match="no pretrained weights of 'vit_384x11_patch14_56' to fetch: give a file with"
    ):
        load_backbone("vit_384x11_patch14_56", None, None)


def _offline(*args, **kwargs):
    raise OSError("no route to the hub")


def test_an_image_size_the_model_cannot_take(student_file):
    for size, message in ((4, "so take 8 pixels"), (36, "its patches are 8x8, so take 32 or 40 pixels")):
        with pytest.raises(WeightsError, match=f"mini_student' cannot be built for {size}x{size} images: .*{message}"):
            load_backbone("mini_student", str(student_file[0]), size)


@pytest.mark.parametrize(("model", "bar"), [("mini_teacher", 98.0), ("mini_student", 96.0)])
def test_the_shipped_pair_knows_digits_it_never_saw(model, bar):
    """A logistic regression on the frozen class token of held-out digits reaches the bar."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone, info = load_backbone(model, None, None)
    assert info.source == "package"
    source, features = digits(), []
    for split in (source.train, source.test):
        loader = batches(
            split.items, split.labels.tolist(), evaluation_transform(ResizeCrop.square(32, 32, "bicubic")), 512
        )
        with torch.no_grad():
            tokens = [backbone.run_blocks(backbone.embed(images), 0, backbone.depth)[:, 0] for images, _ in loader]
            features.append(backbone.final_norm(torch.cat(tokens)).numpy())
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features[0], source.train.labels)
    assert 100 * np.mean(probe.predict(features[1]) == source.test.labels) >= bar


@pytest.mark.parametrize("model", mini.MINI_MODELS)
def test_timm_makes_the_shipped_models_by_name(model):
    network = timm.create_model(model, pretrained=True)
    stored = safetensors.torch.load_file(mini.WEIGHTS_DIR / f"{model}.safetensors")
    assert stored["head.weight"].dtype == torch.float16
    assert torch.equal(network.head.weight.detach(), stored["head.weight"].float())
    record = json.loads((mini.WEIGHTS_DIR / f"{model}.json").read_text())
    assert record["classes"] == network.num_classes
