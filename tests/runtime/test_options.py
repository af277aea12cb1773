"""Options are declared once: the command line, its help, files and records have exactly those of the configuration."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cdl_deploy.cli import app, main
from cdl_deploy.cli import train as train_command
from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    option_sections,
    teacher_options,
)
from cdl_deploy.run.config_file import read_config_file
from cdl_deploy.run.method_options import CodaConfig, KDPConfig, L2PConfig
from cdl_deploy.run.migrations import RENAMED_OPTIONS
from cdl_deploy.run.options import GROUPS, Options, option, options_of

SECTIONS = {"data": DataConfig, "models": ModelConfig, "method": MethodConfig, "optim": OptimConfig}
OTHERS = {
    "run",
    "out",
    "preset",
    "config",
    "resume",
    "dry_run",
    "as_json",
    "add",
    "classes",
    "allow_known",
    "undo",
    "forget",
}
"""Parameters of `cdl train` that are about the run itself, not its configuration."""


@pytest.fixture
def parameters():
    train_command.offer_options()
    return {it.name: it for it in get_command(app).commands["train"].params}


def test_every_field_is_an_option_of_the_command_and_no_other(parameters):
    fields = [it.name for section in SECTIONS.values() for it in dataclasses.fields(section) if it.name != "more"]
    assert len(fields) == len(set(fields)), "the command line tells sections apart by nothing"
    old = {it.about.was for options in option_sections().values() for it in options} - {None}
    assert set(parameters) - {"help"} == {*fields, *OTHERS, *old}
    for name in fields:
        assert parameters[name].opts == [f"--{name.replace('_', '-')}"]
        assert parameters[name].help
        assert not parameters[name].hidden
    assert {it for it in parameters if parameters[it].hidden} == old


def test_a_configuration_has_exactly_the_fields_that_are_declared():
    for name, values in RunConfig().to_dict().items():
        assert set(values) == {it.name for it in option_sections()[name]}
        assert set(values) == {it.name for it in dataclasses.fields(SECTIONS[name])} - {"more"}


def test_the_help_is_grouped():
    out = CliRunner(env={"NO_COLOR": "1"}).invoke(app, ["train", "--help"], terminal_width=98).stdout
    headings = re.findall(r"^(\w[\w ]+):$", out, re.MULTILINE)
    assert headings == ["Arguments", "Run", "One more task", *GROUPS, "Options"]
    parts = dict(zip(headings, re.split(r"^\w[\w ]+:$", out, flags=re.MULTILINE)[1:], strict=True))
    for heading, flag in [
        ("Data", "--holdout"), ("Models", "--teacher-run"), ("Method", "--top-k"), ("Distillation", "--alpha"),
        ("Head", "--calibration"), ("Optimisation", "--lr"), ("Machine", "--workers"), ("Run", "--resume"),
        ("One more task", "--classes"), ("Options", "--help"),
    ]:  # fmt: skip
        assert re.search(rf"^  .*{flag}\b", parts[heading], re.MULTILINE), flag
    assert "--prompt-rows" not in out
    for options in option_sections().values():
        for it in options:
            assert it.group in GROUPS
            assert out.split("Examples:")[0].count(f"  {it.flag} ") == 1, it.flag


def test_the_default_that_the_help_names_is_the_fields():
    said = {it.name: it.help for options in option_sections().values() for it in options}
    assert said["lr"].endswith("Default: 0.001.")
    assert said["orthogonality"].endswith("Default: 0.")
    assert said["query"].endswith("Default: full.")
    assert said["seed"].endswith("Default: 0.")
    assert "Default" not in said["skip_bad"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(exit_.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())
def test_old_names_work_for_one_version(capsys, tmp_path, old, new):
    """On the command line with a note, and as keys of a file."""
    old_flag, flag = (f"--{name.replace('_', '-')}" for name in (old, new))
    code, out, err = run(capsys, "--out", tmp_path / "run", old_flag, "-1")
    note, error = err.splitlines()
    assert (code, out) == (2, "")
    assert note == f"note: {old_flag} is now called {flag}"
    assert error.startswith(f"error: {flag} is -1, expected at least")
    code, _, err = run(capsys, "--out", tmp_path / "run", old_flag, "2", flag, "2")
    assert (code, err) == (2, f"error: {old_flag} is the old name of {flag}: give one of them\n")
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"method": {old: 3}}))
    assert read_config_file(file) == {"method": {new: 3}}
    file.write_text(json.dumps({"method": {old: 3, new: 3}}))
    with pytest.raises(OptionError, match=f"method.{old} is the old name of {new}: give one of them"):
        read_config_file(file)


@pytest.mark.parametrize("more", [["--classes", "a,b"], ["--allow-known"], ["--classes", "a", "--allow-known"]])
def test_a_plan_of_a_new_run_adds_no_classes(capsys, more):
    code, out, err = run(capsys, "--dry-run", *more)
    assert (code, out) == (2, "")
    assert err == "error: --classes and --allow-known belong to --add DIR: give it, or leave them out\n"


def test_a_method_gets_its_own_options_and_no_other():
    config = MethodConfig(components_per_task=3, kd_token_start="none", alpha=0.25)
    assert config.part(CodaConfig) == CodaConfig(components_per_task=3)
    assert config.part(KDPConfig) == KDPConfig(kd_token_start="none", alpha=0.25)
    assert {it.name for it in options_of(L2PConfig)} == {"prompt_length", "key_loss_weight", "pool_size", "top_k"}


def test_what_decides_what_a_teacher_is():
    assert set(teacher_options(MethodConfig())) == {
        "method", "query", "query_regulariser", "prompt_length", "key_loss_weight", "pool_size", "top_k",
        "shared_prompt_length", "merge_share", "orthogonality", "components_per_task", "head_start",
        "head", "teacher_head", "features", "teacher_features", "random_features", "adapt", "priors", "shrinkage",
        "ridge_penalty",
        "components", "component_start", "unseen_keys", "entries", "apt_teacher",
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bounded(Options):
    """One option of every kind of bound."""

    share: float = option(0.5, "A share.", low=0, high=1)
    positive: float = option(1.0, "More than nothing.", above=0)
    part: float = option(0.0, "Less than all.", low=0, below=1, expected="less than all")
    kind: str = option("a", "A kind.", choices=("a", "b"))
    kinds: str = option("a", "Kinds.", choices=("a", "b"), several=True)
    count: int | None = option(None, "A number.", low=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.1}, "--share is 1.1, expected from 0 to 1"),
        ({"share": float("nan")}, "--share is nan, expected from 0 to 1"),
        ({"positive": 0.0}, "--positive is 0, expected more than 0"),
        ({"part": 1.0}, "--part is 1, expected less than all"),
        ({"kind": "c"}, "--kind 'c' is unknown, expected one of a, b"),
        ({"kinds": "a,c"}, "--kinds 'c' is unknown, expected one of a, b"),
        ({"count": 0}, "--count is 0, expected at least 1"),
    ],
)
def test_bounds_and_choices_are_checked_where_the_option_is_declared(values, message):
    with pytest.raises(OptionError) as raised:
        Bounded(**values)
    assert str(raised.value) == message


def test_what_lies_within_the_bounds():
    for values in ({"share": 0}, {"share": 1}, {"positive": 1e-9}, {"part": 0.999}, {"kinds": "b, a"}, {"count": 1}):
        Bounded(**values)


PLUG_IN = """
import sys
from dataclasses import dataclass
from cdl_deploy.run.options import Options, option

print("LOADED", file=sys.stderr)

@dataclass(frozen=True)
class SoftConfig(Options):
    softness: float = option(2.0, "Soft: how soft.", metavar="T", above=0, teacher=True)
    alpha: float = option(0.5, "Weight of the teacher in loss and prediction.", low=0, high=1)

class Soft:
    Config = SoftConfig
"""


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """A package that registers a method, as installed."""
    site = tmp_path / "site"
    (site / "soft-1.0.dist-info").mkdir(parents=True)
    (site / "soft-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: soft\nVersion: 1.0\n")
    (site / "soft-1.0.dist-info/entry_points.txt").write_text("[cdl_deploy.methods]\nsoft = soft_plug_in:Soft\n")
    (site / "soft_plug_in.py").write_text(PLUG_IN)

    def python(program):
        code = f"import sys; sys.path.insert(0, {str(site)!r})\n{program}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return python


def test_options_of_another_package_appear(plugged, tmp_path):
    code, out, err = plugged("from cdl_deploy.cli import main; main(['train', '--help'])")
    assert code == 0, err
    assert re.search(r"--softness T +Soft: how soft\. Default: 2\.", out)
    assert out.count("--alpha SHARE") == 1, "an option that is there already is not offered twice"
    code, out, err = plugged(f"""
import json
from cdl_deploy.run.config import RunConfig, teacher_options
from cdl_deploy.run.config_file import layered_config
from pathlib import Path
file = Path({str(tmp_path / "c.json")!r})
file.write_text(json.dumps({{"method": {{"method": "soft", "softness": 3}}}}))
config = layered_config(None, file, {{"method": {{"alpha": 0.25}}}})
from soft_plug_in import SoftConfig
assert config.method.part(SoftConfig) == SoftConfig(3.0, 0.25)
assert config.to_dict()["method"]["softness"] == 3.0
assert RunConfig.from_dict(config.to_dict()) == config
assert "softness" in teacher_options(config.method)
for values, message in ((3, "--softness is -1, expected more than 0"), ("x", "expected a number")):
    file.write_text(json.dumps({{"method": {{"softness": -1 if values == 3 else values}}}}))
    try:
        layered_config(None, file, {{}})
    except Exception as error:
        assert message in str(error), error
    else:
        raise SystemExit("not refused")
""")
    assert code == 0, err


def test_other_commands_do_not_load_it(plugged):
    for command in (["--help"], ["predict", "--help"], ["runs", "--help"]):
        code, _, err = plugged(f"from cdl_deploy.cli import main; main({command})")
        assert (code, err) == (0, "")


def test_one_that_cannot_be_loaded_is_one_line(plugged, tmp_path):
    (tmp_path / "site/soft_plug_in.py").write_text("import nothing_that_exists")
    code, out, err = plugged("from cdl_deploy.cli import main; main(['train', '--out', 'run'])")
    assert (code, out) == (2, "")
    assert err.startswith("error: 'soft' of soft_plug_in:Soft cannot be loaded (ModuleNotFoundError: No module named")
    assert err.count("\n") == 1
