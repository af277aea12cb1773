"""`cdl train`, `cdl runs` and `cdl export` as a user types them: what they print, one clear line for what is wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from cdl_deploy.cli import main
from cdl_deploy.errors import OptionError
from tests.training.conftest import no_pictures_drawn, write_images, write_photos

MODELS = ["--teacher", "mini_student", "--student", "mini_student", "--device", "cpu"]
QUICK = [*MODELS, "--epochs", "1", "--batch-size", "8", "--components-per-task", "2"]


def cdl(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(exit_.value.code or 0), printed.out, printed.err


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A run, and what `cdl train` printed."""
    root, out, err = tmp_path_factory.mktemp("trained"), io.StringIO(), io.StringIO()
    write_photos(root / "photos")
    words = ["train", "--data", root / "photos", "--tasks", 2, "--out", root / "run", *QUICK]
    with no_pictures_drawn(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert (end.value.code, err.getvalue()) == (0, "")
    return root / "run", out.getvalue()


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of the run, to be changed."""
    run, out = trained_once
    return shutil.copytree(run, tmp_path / "run"), out


def test_train_prints_a_table_and_what_comes_next(trained_once):
    run, out = trained_once
    assert "accuracy over all classes seen" in out
    assert "final average" in out
    assert "forgetting" in out
    assert f"cdl export {run} --onnx" in " ".join(out.split())


def test_json_on_stdout_is_the_record(photos, tmp_path, capsys):
    code, out, err = cdl(
        capsys,
        "train",
        "--data",
        photos,
        "--tasks",
        2,
        "--distill",
        "none",
        "--out",
        tmp_path / "run",
        "--json",
        *QUICK,
    )
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record == json.loads((tmp_path / "run/run.json").read_text())
    assert 0 <= record["student"]["final_average_accuracy"] <= 100
    assert record["teacher"] is None
    assert record["config"]["method"]["components_per_task"] == 2


def test_runs_shows_the_history(trained, capsys):
    run, _ = trained
    code, out, _ = cdl(capsys, "runs", run)
    assert code == 0
    assert "student" in out
    assert str(run / "run.json") in "".join(out.split())
    assert f"student: {json.loads((run / 'run.json').read_text())['backbones']['student']['model']}" in out
    assert "the same" in out
    code, out, _ = cdl(capsys, "runs", run, "--json")
    assert json.loads(out)["status"] == "finished"


def test_resume_of_a_finished_run_changes_nothing(trained, capsys):
    run, _ = trained
    before = (run / "checkpoints/last.safetensors").read_bytes()
    code, out, _ = cdl(capsys, "train", "--resume", "--out", run)
    assert code == 0
    assert "final average" in out
    assert (run / "checkpoints/last.safetensors").read_bytes() == before


def test_the_library_prints_nothing_and_progress_needs_a_terminal(photos, tmp_path, capsys):
    from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
    from cdl_deploy.training.loop import train

    config = RunConfig(
        DataConfig(str(photos), tasks=2),
        ModelConfig(student="mini_student"),
        MethodConfig(distill="none", components_per_task=2),
        OptimConfig(epochs=1, device="cpu"),
    )
    train(config, tmp_path / "run")
    assert capsys.readouterr() == ("", "")


ERRORS = [
    (["--method", "codda"], "unknown, expected one of none, l2p, dualprompt, coda, apt; did you mean 'coda'?"),
    (["--query", "blok:4"], "--query is 'blok:4', expected full, or block:K with K at least 1, such as block:4"),
    (
        ["--query", "block:2"],
        "CODA-Prompt prompts blocks 2 to 6 (counted from 0), but the model has 6 blocks: choose a deeper",
    ),
    (["--query", "block:2", "--method", "apt"], "--query block:2 has no meaning with --method apt, which chooses"),
    (["--top-k", "31"], "--top-k 31 is more than the --pool-size of 30: ask for fewer"),
    (["--distill", "kdpp"], "dkd, fitnets, reviewkd, deit, kdp; did you mean 'kdp'?"),
    (["--preset", "papre"], "--preset 'papre' is unknown, expected one of default, kdp, paper; did you mean 'paper'?"),
    (["--config", "gone.yaml"], "cannot read --config gone.yaml: No such file"),
    (["--pixel-range", "units"], "--pixel-range 'units' is unknown, expected one of model, unit; did you mean 'unit'?"),
    (
        ["--schedule", "cosin"],
        "--schedule 'cosin' is unknown, expected one of cosine, quarter-cosine-late, cosine",
    ),
    (["--benchmark", "cifar100"], "--benchmark cifar100 sets what the paper's runs had: give --preset paper with it"),
    (
        ["--preset", "paper", "--benchmark", "cifar100"],
        "--benchmark cifar100 has 100 classes, and ",
    ),
    (
        ["--preset", "paper", "--batch-size", "7"],
        "--last-batch drop: task 1 has 6 images to learn from, fewer than a batch of 7, and would learn nothing: "
        "give --batch-size 6 or less, or --last-batch keep",
    ),
    (["--components", "1"], "--components 1 are fewer than the 4 tasks: ask for more"),
    (["--components", "20", "--components-per-task", "2"], "--components and --components-per-task exclude each other"),
    (["--resize", "31"], "--resize is 31, less than the 32 pixels that are cropped from it: give at least 32"),
    (["--crop", "none", "--resize", "40"], "--crop none resizes the whole image to what the model takes, not to"),
    (["--interpolation", "lanczos"], "--interpolation 'lanczos' is unknown, expected one of bilinear, bicubic"),
    (["--class-order", "gone.txt"], "cannot read --class-order gone.txt: No such file"),
    (["--method", "dualprompt", "--entries", "3"], "--entries is of --unseen-keys chosen: give it as well, or leave"),
    (["--student", "vit_smal_patch16_224"], "did you mean 'vit_small_patch16_224'?"),
    (["--tasks", "5"], "--tasks 5 is more than the 4 classes there are: ask for 4 or fewer"),
    (["--tasks", "two"], "Invalid value for '--tasks'"),
    (["--epocs", "3"], "No such option: --epocs (Possible options: --epochs"),
    (["--epochs", "0"], "--epochs is 0, expected at least 1"),
    (["--student-weights", "gone.safetensors"], "weights file gone.safetensors does not exist"),
    (["--task-file", "gone.yaml"], "cannot read --task-file gone.yaml: No such file"),
    (
        ["--resume", "--epochs", "3"],
        "--resume continues a run as it was configured, so --epochs cannot be given: leave it out",
    ),
    (
        ["--resume", "--preset", "kdp", "--config", "my.yaml"],
        "--resume continues a run as it was configured, so --preset, --config cannot be given: leave them out",
    ),
    (["--add", "more", "--preset", "kdp"], "--add goes on with a run as it was configured, so --preset, --data cannot"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_bad_options_are_one_line_and_exit_2_and_write_nothing(photos, tmp_path, capsys, options, message):
    code, out, err = cdl(capsys, "train", "--data", photos, "--out", tmp_path / "run", *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_bad_images_are_named(photos, tmp_path, capsys):
    (photos / "train/cat/2.png").write_bytes(b"nothing")
    code, _, err = cdl(capsys, "train", "--data", photos, "--tasks", 2, "--out", tmp_path / "run", *QUICK)
    assert code == 2
    assert "train/cat/2.png" in err
    assert "--skip-bad" in err
    code, out, _ = cdl(capsys, "train", "--data", photos, "--tasks", 2, "--out", tmp_path / "run", "--skip-bad", *QUICK)
    assert code == 0
    assert "1 unreadable image left out" in out


def test_an_output_directory_in_use(trained, photos, capsys):
    run, _ = trained
    code, _, err = cdl(capsys, "train", "--data", photos, "--out", run, *QUICK)
    assert code == 2
    assert "already holds a run: continue it with --resume, or choose another --out" in err


def test_a_run_of_a_newer_format(trained, capsys):
    run, _ = trained
    stored = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**stored, "format_version": 99}))
    for arguments in (["train", "--resume", "--out", run], ["export", run, "--onnx"], ["runs", run]):
        code, _, err = cdl(capsys, *arguments)
        assert code == 2
        assert "has format version 99, this cdl-deploy" in err
        assert err.count("\n") == 1


def test_one_tree_with_holdout(tmp_path, capsys):
    write_images(tmp_path / "tree", {"ant": 6, "bee": 6, "cat": 6})
    code, out, _ = cdl(
        capsys, "train", "--data", tmp_path / "tree", "--holdout", 0.3, "--classes-per-task", 2, "--distill", "none",
        "--out", tmp_path / "run", "--json", *QUICK,
    )  # fmt: skip
    assert code == 0
    record = json.loads(out)
    assert [len(task["classes"]) for task in record["tasks"]] == [2, 1]
    assert [task["test_images"] for task in record["tasks"]] == [4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere"], "nowhere is no run directory: it does not exist; make one with cdl train"),
        (["export", "nowhere", "--onnx"], "nowhere is no run directory: it does not exist; make one with cdl train"),
        (["runs", "nowhere"], "nowhere is no run directory"),
        (["train"], "no run directory is given: add --out RUN"),
    ],
)
def test_other_mistakes(capsys, arguments, message):
    code, _, err = cdl(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("command", "module", "extra"), [("train", "torch", "train"), ("export", "onnx", "export")])
def test_a_missing_extra_is_one_line(tmp_path, command, module, extra):
    """In a process of its own, to which the package is missing."""
    arguments = ["train", "--out", "run"] if command == "train" else ["export", ".", "--onnx"]
    code = f"import sys; sys.modules['{module}'] = None; from cdl_deploy.cli import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    expected = f"cdl {command} needs {module}, which is not installed: pip install 'cdl-deploy[{extra}]'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {expected}\n")
    assert not list(tmp_path.iterdir())


def test_help_lists_every_command_and_ends_in_examples(capsys):
    code, out, _ = cdl(capsys, "--help")
    assert code == 0
    for command in ("train", "runs", "export", "bench-latency", "predict"):
        assert command in out
        code, own, _ = cdl(capsys, command, "--help")
        assert code == 0
        assert f"  cdl {command}" in own.split("Examples:")[1]


def test_a_class_with_a_comma_stands_in_quotes():
    from cdl_deploy.cli.train import _names

    assert _names('ant,"salt, sea", bee') == ("ant", "salt, sea", "bee")
    assert _names(None) == ()
    with pytest.raises(OptionError, match="a class with a comma stands in double quotes"):
        _names('"ant')
