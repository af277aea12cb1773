"""Configuration: checked when built, saved and read back, unknown keys refused."""

from __future__ import annotations

import json

import pytest

from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    default_batch_size,
)


def test_to_json_and_back():
    config = RunConfig(data=DataConfig("photos", tasks=3), optim=OptimConfig(epochs=2, lr=0.01))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"datta": {}}, "configuration has the unknown key 'datta'; did you mean 'data'"),
        ({"optim": {"epoch": 3}}, "section 'optim' has the unknown key 'epoch'; did you mean 'epochs'"),
        ({"optim": {"zzz": 3}}, "section 'optim' has the unknown key 'zzz', expected one of epochs, batch_size, "),
    ],
)
def test_unknown_keys_offer_the_nearest(values, message):
    with pytest.raises(OptionError, match=message):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DataConfig(tasks=0), "--tasks is 0, expected at least 1"),
        (lambda: DataConfig(tasks=2, classes_per_task=2), "exclude each other"),
        (lambda: DataConfig(holdout=1.0), "--holdout is 1, expected a share between 0 and 1"),
        (lambda: DataConfig(class_order="natral"), "--class-order 'natral' is unknown, .*did you mean 'natural'"),
        (lambda: DataConfig(augmentation="foto"), "--augmentation 'foto' is unknown, .*did you mean 'photo'"),
        (lambda: OptimConfig(epochs=0), "--epochs is 0, expected at least 1"),
        (lambda: OptimConfig(lr=-1.0), "--lr is -1, expected a positive number"),
        (lambda: OptimConfig(lr=float("nan")), "--lr is nan, expected a positive number"),
        (lambda: OptimConfig(batch_size=0), "--batch-size is 0, expected at least 1"),
        (lambda: MethodConfig(alpha=1.5), "--alpha is 1.5, expected from 0 to 1"),
        (lambda: MethodConfig(temperature=0.0), "--temperature is 0, expected more than 0"),
        (lambda: MethodConfig(dkd_temperature=-1.0), "--dkd-temperature is -1, expected more than 0"),
        (lambda: MethodConfig(fitnets_weight=-0.1), "--fitnets-weight is -0.1, expected at least 0"),
        (lambda: ModelConfig(pixel_range="uint"), "--pixel-range 'uint' is unknown, .*did you mean 'unit'"),
        (lambda: OptimConfig(schedule="late"), "--schedule 'late' is unknown, .*did you mean 'cosine-late'"),
    ],
)
def test_impossible_values_are_named_by_option(build, message):
    with pytest.raises(OptionError, match=message):
        build()


def test_small_tasks_get_small_batches():
    assert [default_batch_size(images) for images in (5000, 1024, 1023, 290, 128, 3)] == [64, 64, 32, 16, 8, 8]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ({"distill": "kd"}, ["kd_prompt_length"], "--kd-prompt-length is of --distill kdp, and would change nothing"),
        ({"distill": "none"}, ["alpha"], "--alpha is of --distill kd or dkd or .* with --distill none: leave it out"),
        (
            {"distill": "dkd"},
            ["temperature"],
            "--temperature is of --distill kd or .* with --distill dkd: leave it out",
        ),
        ({"method": "coda"}, ["epochs", "top_k"], "--top-k is of --method l2p, and would change nothing with --method"),
        ({"method": "none"}, ["prompt_length"], "--prompt-length is of --method l2p or dualprompt or coda, and would"),
    ],
)
def test_options_of_another_method_are_not_passed_over(method, given, message):
    with pytest.raises(OptionError, match=message):
        MethodConfig(**method).check_used(given)


def test_options_of_what_was_chosen_are_used():
    MethodConfig(distill="dkd").check_used(["alpha", "dkd_temperature", "components_per_task", "head", "lr"])
