"""Preset < file < command line, and files that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cdl_deploy.cli import main
from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import DataConfig, OptimConfig, RunConfig
from cdl_deploy.run.config_file import layered_config, read_config_file
from cdl_deploy.run.presets import PRESETS
from cdl_deploy.training.backbones.loading import load_backbone
from tests.training.conftest import write_images
from tests.training.test_cli import QUICK


def test_the_paper_preset_is_what_the_table_says():
    """docs/method.md, "What the paper preset changes"; everything else is as without a preset."""
    paper, default = layered_config("paper", None, {}), RunConfig()
    assert (default.data.class_order, paper.data.class_order) == ("shuffled", "natural")
    assert (default.models.pixel_range, paper.models.pixel_range) == ("model", "unit")
    assert (default.method.key_loss_weight, paper.method.key_loss_weight) == (1.0, 2.0)
    assert (default.method.fitnets_weight, paper.method.fitnets_weight) == (0.1, 0.2)
    assert (default.method.reviewkd_weight, paper.method.reviewkd_weight) == (0.2, 0.4)
    assert (default.method.kd_token_start, paper.method.kd_token_start) == ("class-token", "uniform")
    assert (default.method.kd_lr_scale, paper.method.kd_lr_scale) == (0.1, 1.0)
    assert (default.method.head_start, paper.method.head_start) == ("zeros", "linear")
    assert (default.optim.batch_size, paper.optim.batch_size) == (None, 64)
    assert (default.optim.schedule, paper.optim.schedule) == ("cosine", "quarter-cosine-late")
    assert (default.optim.last_batch, paper.optim.last_batch) == ("keep", "drop")
    assert (default.optim.precision, paper.optim.precision) == ("auto", "fp32")
    assert (default.data.interpolation, paper.data.interpolation) == (None, "bilinear")
    assert (default.method.components, paper.method.components) == (None, 100)
    assert (default.method.component_start, paper.method.component_start) == ("exact", "one-pass")
    assert (default.method.unseen_keys, paper.method.unseen_keys) == ("masked", "chosen")
    assert (default.method.apt_teacher, paper.method.apt_teacher) == ("trained", "merged")
    changed = {
        (section, key)
        for section, values in paper.to_dict().items()
        for key, value in values.items()
        if value != default.to_dict()[section][key]
    }
    assert changed == {(section, key) for section, values in PRESETS["paper"].items() for key in values}
    best = replace(default, method=replace(default.method, method="none", distill="none", head="slda"))
    assert layered_config("default", None, {}) == layered_config(None, None, {}) == best


@pytest.mark.parametrize(
    ("given", "method", "distill"),
    [
        ({}, "none", "none"),
        ({"data": {"tasks": 3}, "optim": {"epochs": 2}}, "none", "none"),
        ({"models": {"student": "vit_small_patch16_224"}}, "none", "none"),
        ({"models": {"train_teacher": True}, "method": {"head": "ridge", "random_features": 99}}, "none", "none"),
        ({"models": {"teacher": "vit_base_patch16_224"}}, "coda", "kdp"),
        ({"models": {"teacher_run": "runs/a"}, "method": {"distill": "kd"}}, "coda", "kd"),
        ({"method": {"method": "l2p"}}, "l2p", "kdp"),
        ({"method": {"distill": "none"}}, "coda", "none"),
        ({"method": {"query": "block:2"}}, "coda", "kdp"),
        ({"method": {"adapt": "first"}}, "coda", "kdp"),
    ],
)
def test_the_backbone_is_frozen_until_a_teacher_method_or_distillation_is_named(given, method, distill, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps(given))
    for found in (layered_config(None, None, given), layered_config(None, file, {})):
        assert (found.method.method, found.method.distill) == (method, distill)
    kdp = layered_config("kdp", None, {}).method
    assert (kdp.method, kdp.distill, kdp.head) == ("coda", "kdp", "slda")


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_what_comes_later_wins(name, tmp_path):
    file = tmp_path / name
    content = {"method": {"fitnets_weight": 0.7, "reviewkd_weight": 0.8}, "optim": {"epochs": 3, "batch_size": 16}}
    file.write_text(json.dumps(content))  # JSON is YAML, too
    found = layered_config("paper", file, {"method": {"reviewkd_weight": 0.9}, "optim": {"epochs": 4}})
    assert found.method.kd_lr_scale == 1.0  # preset
    assert found.optim.schedule == "quarter-cosine-late"
    assert found.method.fitnets_weight == 0.7  # file over preset
    assert found.optim.batch_size == 16
    assert found.method.reviewkd_weight == 0.9  # command line over both
    assert found.optim.epochs == 4
    assert found.method.alpha == 0.5  # default


def test_a_runs_own_configuration_is_a_file(tmp_path):
    config = RunConfig(DataConfig("photos", tasks=3, skip_bad=True), optim=OptimConfig(epochs=2, lr=1e-5))
    for name in ("c.json", "c.yaml"):  # YAML takes json's 1e-05 for text
        (tmp_path / name).write_text(json.dumps(config.to_dict()))
        assert layered_config(None, tmp_path / name, {}) == config


def test_another_way_to_deal_out_tasks_displaces_the_files(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {tasks: 3, data: photos}\noptim:\n")
    found = layered_config(None, file, {"data": {"classes_per_task": 2}})
    assert (found.data.tasks, found.data.classes_per_task, found.data.data) == (None, 2, "photos")
    assert layered_config(None, file, {}).data.tasks == 3


SMALL, BASE, LARGE = (f"vit_{size}_patch16_224.augreg_in21k_ft_in1k" for size in ("small", "base", "large"))


@pytest.mark.parametrize(
    ("models", "distill", "student", "teacher", "batch"),
    [
        ({}, "kdp", SMALL, BASE, 64),
        ({"student": "vit_base"}, "kdp", BASE, LARGE, 32),
        ({"student": "vit_base_patch16_224"}, "none", BASE, LARGE, 64),
        ({"student": "vit_base", "train_teacher": True}, "none", BASE, LARGE, 32),
        ({"student": "vit_large"}, "none", LARGE, BASE, 32),
        (
            {"student": "vit_base", "teacher": "vit_small_patch16_224.dino"},
            "kd",
            BASE,
            "vit_small_patch16_224.dino",
            64,
        ),
        ({"student": "vit_base", "student_weights": "own.bin"}, "kd", "vit_base_patch16_224", LARGE, 32),
    ],
)
def test_a_benchmark_names_its_models_in_full(models, distill, student, teacher, batch):
    given = {"data": {"benchmark": "cifar100"}, "models": models, "method": {"distill": distill}}
    found = layered_config("paper", None, given)
    assert (found.models.student, found.models.teacher, found.optim.batch_size) == (student, teacher, batch)
    given["optim"] = {"batch_size": 16}
    assert layered_config("paper", None, given).optim.batch_size == 16


def test_a_benchmark_is_what_the_paper_says_of_its_data(tmp_path):
    """CIFAR: 20 epochs, the whole test image; ImageNet-R: 35, 256 pixels cropped. Ten tasks each; options win."""
    cifar, imagenet = (layered_config("paper", None, {"data": {"benchmark": n}}) for n in ("cifar100", "imagenet-r"))
    for found in (cifar, imagenet):
        assert (found.data.tasks, found.data.augmentation, found.data.interpolation) == (10, "photo", "bilinear")
        assert (found.data.class_order, found.optim.schedule) == ("natural", "quarter-cosine-late")
    assert (cifar.optim.epochs, cifar.data.crop, cifar.data.resize) == (20, "none", None)
    assert (imagenet.optim.epochs, imagenet.data.crop, imagenet.data.resize) == (35, "centre", 256)
    more = {"data": {"benchmark": "cifar100", "classes_per_task": 5, "resize": 248}, "optim": {"epochs": 3}}
    found = layered_config("paper", None, more)
    assert (found.data.tasks, found.data.classes_per_task, found.optim.epochs) == (None, 5, 3)
    assert (found.data.crop, found.data.resize) == ("centre", 248)
    found = layered_config("paper", None, {"method": {"components_per_task": 7, "unseen_keys": "masked"}})
    assert (found.method.components, found.method.components_per_task) == (None, 7)
    (tmp_path / "c.json").write_text(json.dumps(cifar.to_dict()))
    assert layered_config(None, tmp_path / "c.json", {}) == cifar, "a run's own configuration needs no preset"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}", "section 'optim' has the unknown key 'epoch'; did you mean 'epochs'"),
        ("optimm: {epochs: 3}", "configuration has the unknown key 'optimm'; did you mean 'optim'"),
        ("optim: {epochs: many}", "optim.epochs is 'many', expected a whole number"),
        ("optim: {epochs: 2.5}", "optim.epochs is 2.5, expected a whole number"),
        ("optim: {epochs: null}", "optim.epochs is None, expected a whole number"),
        ("optim: {lr: fast}", "optim.lr is 'fast', expected a number"),
        ("optim: {lr: true}", "optim.lr is True, expected a number"),
        ("data: {skip_bad: 1}", "data.skip_bad is 1, expected true or false"),
        ("data: {class_order: [1]}", r"data.class_order is \[1\], expected text"),
        ("optim: {epochs: 0}", "--epochs is 0, expected at least 1"),
        ("data: {tasks: 2, classes_per_task: 3}", "exclude each other"),
        ("optim: 3", r"expected sections \(data, models, method, optim\)"),
        ("- optim", "expected sections"),
        ("optim: {", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(text, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message) as raised:
        read_config_file(file)
    assert str(raised.value).startswith(f"--config {file}")
    assert "\n" not in str(raised.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(OptionError, match=r"cannot read --config .*gone.yaml: No such file"):
        read_config_file(tmp_path / "gone.yaml")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(OptionError, match="is not JSON"):
        read_config_file(tmp_path / "c.json")


def test_the_command_line_layers_them(photos, tmp_path, capsys):
    """`cdl train` as typed; the run stores what came out, and its pixel statistics."""
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {{data: {photos}, tasks: 1}}\nmethod: {{distill: none, alpha: 0.25}}\n")
    options = ["--preset", "paper", "--config", str(file), "--tasks", "2", "--crop", "none", "--json", *QUICK]
    with pytest.raises(SystemExit) as exit_:
        main(["train", *options, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert (exit_.value.code or 0, printed.err) == (0, "")
    record = json.loads(printed.out)
    config = record["config"]
    assert config["data"]["tasks"] == 2
    assert (config["method"]["alpha"], config["method"]["head_start"]) == (0.25, "linear")
    assert config["optim"]["batch_size"] == 8  # of QUICK
    assert [task["classes"] for task in record["tasks"]] == [["ant", "bee"], ["cat", "dog"]]  # natural order
    assert record["backbones"]["student"]["mean"] == [0, 0, 0]
    assert record["backbones"]["student"]["std"] == [1, 1, 1]
    assert record["preprocessing"] == {"size": 32, "resize": 32, "interpolation": "bilinear", "augmentation": "photo"}
    assert config["optim"]["precision"] == "fp32"
    write_images(tmp_path / "few", {"eel": 5, "fox": 4})
    write_images(tmp_path / "wide", {"eel": 10})
    Image.new("RGB", (20, 21)).save(tmp_path / "wide/eel/9.png")
    for folder, message in (
        ("few", "--last-batch drop: task 3 has 7 images to learn from, fewer than a batch of 8"),
        ("wide", "wide/eel/9.png has 20×21 pixels, and --crop none sees square images only: this run cannot learn it"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["train", str(tmp_path / "run"), "--add", str(tmp_path / folder), "--holdout", "0.2"])
        err = capsys.readouterr().err
        assert (exit_.value.code, err.count("\n")) == (2, 1)
        assert message in err
    assert record == json.loads((tmp_path / "run/run.json").read_text())


def test_unit_pixels_reach_the_network_as_they_are():
    backbone, info = load_backbone("mini_student", None, None, "unit")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(backbone.embed(pixels), backbone.embed_normalised(pixels / 255))
    assert (info.mean, info.std) == ((0, 0, 0), (1, 1, 1))
    assert load_backbone("mini_student", None, None)[1].mean == (0.5, 0.5, 0.5)
