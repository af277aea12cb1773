"""What computes and what the command line offers are the same classes of options."""

from __future__ import annotations

from cdl_deploy.run.method_options import DISTILLATION_CONFIGS, METHOD_CONFIGS
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.methods import METHODS


def test_every_method_and_distillation_has_its_own():
    assert {name: METHODS[name].Config for name in METHODS} == METHOD_CONFIGS
    assert {name: DISTILLATIONS[name].Config for name in DISTILLATIONS} == DISTILLATION_CONFIGS
