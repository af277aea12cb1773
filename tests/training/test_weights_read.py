"""What of a file is the network: containers, prefixes, parts, what lies beside it, and what it is where it is none."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from cdl_deploy.cli.train_progress import notes_on
from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones import hub
from cdl_deploy.training.backbones.loading import load_backbone
from cdl_deploy.training.backbones.weights_files.described import differences
from cdl_deploy.training.backbones.weights_files.description import describe
from cdl_deploy.training.backbones.weights_files.weights import read_weights
from tests.training import foreign_names as names


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    values = timm.create_model("mini_student", num_classes=0).state_dict()
    return {name: torch.randn(value.shape) for name, value in values.items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def save(content, file):
    torch.save(content, file)  # noqa: TID251
    return file


def holds(weights, state):
    return weights.tensors.keys() == state.keys() and all(torch.equal(weights.tensors[n], state[n]) for n in state)


@pytest.mark.parametrize(
    ("place", "wrap"),
    [
        ("", lambda s: s),
        ("model", lambda s: {"model": s, "epoch": 3}),
        ("state_dict.model.encoder", lambda s: {"state_dict": prefixed(s, "model.encoder."), "pytorch-lightning": "2"}),
        ("net", lambda s: {"net": s}),
        ("model_state_dict.module", lambda s: {"model_state_dict": prefixed(s, "module.")}),
        ("visual.trunk", lambda s: prefixed(s, "visual.trunk.") | {"text.weight": torch.zeros(2)}),
        ("module._orig_mod", lambda s: prefixed(s, "module._orig_mod.")),
        ("base_model.model.vit", lambda s: prefixed(s, "base_model.model.vit.")),
        ("checkpoint.state.ema", lambda s: {"checkpoint": {"state": {"ema": s}}}),
    ],
)
def test_the_longest_prefix_is_taken_off_and_named(place, wrap, state, tmp_path):
    weights = read_weights(save(wrap(state), tmp_path / "a.pth"))
    assert holds(weights, state)
    assert weights.place == place
    assert weights.words() == (f"'{place}' taken off its names" if place else None)


@pytest.mark.parametrize(
    ("wrap", "place", "other"),
    [
        (
            lambda own, s: {"student": prefixed(s, "module.backbone."), "teacher": prefixed(own, "backbone.")},
            "teacher.backbone",
            "student.module.backbone",
        ),
        (lambda own, s: prefixed(s, "student.") | prefixed(own, "teacher."), "teacher", "student"),
        (lambda own, s: {"state_dict": s, "state_dict_ema": own}, "state_dict_ema", "state_dict"),
        (
            lambda own, s: {
                "state_dict": prefixed(own, "module.base_encoder.") | prefixed(s, "module.momentum_encoder.")
            },
            "state_dict.module.base_encoder",
            "state_dict.module.momentum_encoder",
        ),
    ],
)
def test_of_student_and_teacher_the_teacher(wrap, place, other, state, tmp_path):
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    weights = read_weights(save(wrap(state, zeros), tmp_path / "a.pth"))
    assert holds(weights, state)
    assert weights.words() == f"'{place}' taken off its names; not taken: {other}"


def test_of_two_that_are_equals_none(state, tmp_path):
    file = save({"left": state, "right": state}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds several networks, under left, right: save the state dict of one"):
        read_weights(file)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats(kind, state, tmp_path):
    save_file({name: value.to(kind) for name, value in state.items()}, tmp_path / "a.safetensors")
    expected = {name: value.to(kind).float() for name, value in state.items()}
    assert holds(read_weights(tmp_path / "a.safetensors"), expected)


def in_parts(state, folder):
    """A sharded index, as hubs have it."""
    folder.mkdir()
    keys = sorted(state)
    files = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, part in files.items():
        save_file({key: state[key] for key in part}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, part in files.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, index


def test_weights_in_several_files(state, tmp_path):
    folder, index = in_parts(state, tmp_path / "hub")
    for path in (folder, folder / "model.safetensors.index.json"):
        assert holds(read_weights(path), state)
    for names_of_files, message in (
        (["../a.safetensors"], "names no files beside it"),
        ([], "names no files beside it"),
        (["x" * 300], "names no files beside it"),
        ([3], "is no index|names no files beside it"),
    ):
        index["weight_map"] = {f"{n}": name for n, name in enumerate(names_of_files)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=message):
            read_weights(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WeightsError, match="is no index of weights in several files: expected weight_map"):
        read_weights(folder)


def test_a_part_that_is_missing(state, tmp_path):
    folder, _ = in_parts(state, tmp_path / "hub")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"in 2 files, of which 1 are missing, first model-00002-of-00002"):
        read_weights(folder)


def test_a_folder_says_what_is_in_it(state, tmp_path):
    with pytest.raises(WeightsError, match=r"a folder without weights: expected model\.safetensors in it, found noth"):
        read_weights(tmp_path)
    save(state, tmp_path / "b.pth")
    assert read_weights(tmp_path).file == tmp_path / "b.pth"
    save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a folder with several files of weights \(a\.pth, b\.pth\): give one"):
        read_weights(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert read_weights(tmp_path).file == tmp_path / "model.safetensors"


def test_what_a_snapshot_says_of_pixels_and_network(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": {"height": 9}})
    )
    vision = {"num_attention_heads": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision, "hidden_act": 3}))
    said = describe(tmp_path / "model.safetensors")
    assert said.pixels == {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    assert (said.heads, said.activation, said.epsilon, said.image_size) == (2, "quick_gelu", 1e-5, 32)
    assert said.sources == ("preprocessor_config.json", "config.json")
    save_file(state, tmp_path / "mine.safetensors")  # whose weights these are, the config.json does not say
    assert describe(tmp_path / "mine.safetensors").sources == ()
    network = timm.create_model("mini_student", num_classes=0)
    wrong, slight = differences(read_weights(tmp_path), network)
    assert wrong == ["activation quick_gelu, the model's is gelu: choose a model with 'quickgelu' in its name"]
    assert slight == ["its norms add 1e-05, timm's 1e-06: features differ in the fourth digit"]
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 16, "hidden_act": "gelu"}))
    with pytest.raises(WeightsError, match="are of another network than mini_student: attention with 16 heads, the m"):
        load_backbone("mini_student", str(tmp_path), None)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"architecture": 3, "num_attention_heads": -1, "std": [0, 1, 1]}'])
def test_a_configuration_that_says_nothing(text, state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    said = describe(tmp_path / "model.safetensors")
    assert (said.pixels, said.architecture, said.heads) == ({}, None, None)


def test_the_model_that_weights_are_of_is_named(state, tmp_path):
    save_file(names.renamed(state, names.EMBEDDINGS, names.VIT_FILE, "encoder.layer."), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"do not fit the model: .*; they are of mini_student: choose that model"):
        load_backbone("mini_teacher", str(tmp_path / "a.safetensors"), None)
    info = load_backbone("mini_student", str(tmp_path / "a.safetensors"), None)[1]
    assert info.weights == "transformers' ViT"
    assert info.to_dict()["weights"] == info.weights


def test_training_says_how_weights_were_read(state, tmp_path):
    class Record:
        left_out = None
        notes = ()
        backbones = {  # noqa: RUF012
            "student": load_backbone("mini_student", str(save({"ema": state}, tmp_path / "a.pth")), None)[1]
        }

    record = Record()
    record.left_out = {}
    assert list(notes_on(record)) == ["the student's weights a.pth: 'ema' taken off its names"]


# ---- what is no weights ----------------------------------------------------------------------------------------------


def evil(path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    save({"state_dict": {"x": Evil()}}, path)


def plain_pickle(path):
    path.write_bytes(b"\x80\x04cbuiltins\nprint\n(S'ran'\ntR.")  # what reading it would do: print("ran")


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/model.safetensors", b"1")


def cut(path, content, write):
    write(content, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda p: p.touch(), "is empty: the download or the copy did not begin"),
        ("a.safetensors", lambda p: p.write_text("version https://git-lfs"), "is a Git LFS pointer and not the file"),
        ("a.bin", lambda p: p.write_text(" <html>"), "is a web page, not what was to be downloaded"),
        ("config.json", lambda p: p.write_text("{}"), "is JSON, expected weights: give the folder that it lies in"),
        ("a.h5", lambda p: p.write_bytes(b"1"), r"is a Keras file, expected \.safetensors, \.pth, \.npz or \.onnx"),
        ("a.safetensors", lambda p: cut(p, {"a": torch.zeros(99)}, save_file), "it is torn, or no such file"),
        ("a.pth", lambda p: cut(p, {"a": torch.zeros(99)}, save), "it is torn, or no such file"),
        ("a.pth", evil, r"it is a pickle with code \(.*print\), which is never run; save its state dict alone"),
        ("a.pth", lambda p: p.write_text("hello"), "it is no file of weights, or torn"),
        ("a.pkl", plain_pickle, "it is a pickle that torch did not save, which may hold code and is never run; save"),
        ("a.pth", archive, "it is an archive that torch did not save: unpack it first"),
        ("a.safetensors", lambda p: p.write_bytes(bytes(999)), "it is torn, or no such file"),
        ("a.safetensors", lambda p: p.write_text("<?xml version='1.0'?><Error/>"), "is a web page, not what was to be"),
        ("a.pth", lambda p: save([1, 2], p), "expected a mapping of names to tensors, found list"),
        ("a.pth", lambda p: save({"epoch": 1}, p), "expected a mapping of names to tensors, found epoch"),
        (
            "a.safetensors",
            lambda p: save_file({f"layer{n}.conv.weight": torch.zeros(1) for n in range(6)}, p),
            r"holds no ViT that is known: found layer0\.conv\.weight, .* and 2 more; expected one of embeddings\.",
        ),
        (
            "a.safetensors",
            lambda p: save_file(
                {"embeddings.patch_embeddings.projection.weight": torch.zeros(1)}
                | {f"encoder.layer.0.attention.attention.{n}.weight": torch.zeros(2, k) for n, k in zip(
                    ("query", "key", "value"), (1, 2, 3), strict=True)}, p),
            "has names of transformers' ViT, but shapes that do not go together",
        ),
        ("a.onnx", lambda p: p.write_bytes(b"\x08\x08garbage"), "it is no ONNX model, or torn|without nodes"),
    ],
)  # fmt: skip
def test_what_is_no_weights_is_one_line(name, write, message, tmp_path, capsys):
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(tmp_path / name)
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out


def test_a_model_that_is_refused_costs_no_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("cdl_deploy.training.backbones.loading.read_weights", lambda _: pytest.fail("read"))
    with pytest.raises(WeightsError, match="cannot be a backbone here: it is a convolutional network"):
        load_backbone("resnet18", str(tmp_path / "gone.safetensors"), None)


# ---- names on the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(state, tmp_path, monkeypatch):
    """A hub with one repository; what was asked of it."""
    folder, _ = in_parts(state, tmp_path / "hub")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    asked = []

    def download(repository, name, *, revision, local_files_only):
        asked.append((repository, name, revision, local_files_only))
        if repository != "me/vit" or not (folder / name).exists():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_name_on_the_hub(on_hub, state):
    weights = read_weights(hub.located("hf_hub:me/vit@v2"))
    assert holds(weights, state)
    assert weights.heads == 2
    assert {call[0] for call in on_hub} == {"me/vit"}
    assert {call[2:] for call in on_hub} == {("v2", False)}
    fetched = [call[1] for call in on_hub]
    assert "pytorch_model.bin" not in fetched
    assert {"config.json", "preprocessor_config.json", "model-00002-of-00002.safetensors"} <= set(fetched)
    info = load_backbone("mini_student", "hf-hub:me/vit", None)[1]
    assert (info.source, info.model) == ("hf-hub:me/vit", "mini_student")


def test_a_name_that_the_hub_does_not_have(on_hub, monkeypatch):
    with pytest.raises(WeightsError, match=r"'timm/none' has no weights that are known: expected model\.safetensors"):
        hub.located("timm/none")
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    with pytest.raises(WeightsError, match=r"cannot get 'timm/none': the hub cannot be reached \(no route\) and no ea"):
        hub.located("timm/none")
    assert hub.located("hf_hub:me/vit").name == "model.safetensors.index.json"  # an earlier download
    assert on_hub[-1][3]

    def fail(*_, **__):
        raise OSError("no such\nrepository")

    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match=r"cannot get 'hf_hub:a/b' from the hub \(OSError: no such repository\)"):
        hub.located("hf_hub:a/b")


def test_a_path_is_no_name(tmp_path, monkeypatch):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/model").touch()
    monkeypatch.chdir(tmp_path)
    assert hub.located("timm/model").read_bytes() == b""
    for text in ("weights/model", "hf_hub:model", "model.safetensors", "hf_hub:a/../b"):
        assert not hub.is_name(text)
        assert str(hub.located(text)) == re.sub("//", "/", text)
