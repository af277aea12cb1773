"""Precision, compilation and loading processes by the machine; losses that are fetched late."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.run.config import OptimConfig
from cdl_deploy.training.machine import compile_blocks, in_precision, resolve_auto
from cdl_deploy.training.progress import Stage
from cdl_deploy.training.step import STEPS_ON_A_GPU, LossLog, stage_losses
from tests.children import Child
from tests.training.test_learner import make_pair, pixels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "in_memory", "processes", "cores", "workers"),
    [(CPU, False, 1, 16, 0), (GPU, True, 1, 16, 0), (GPU, False, 1, 16, 8), (GPU, False, 1, 4, 3),
     (GPU, False, 4, 16, 3), (GPU, False, 8, 4, 1)],
)  # fmt: skip
def test_workers_follow_the_machine(monkeypatch, device, in_memory, processes, cores, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert resolve_auto(OptimConfig(), device, in_memory, processes).workers == workers
    assert resolve_auto(OptimConfig(workers=5), device, in_memory, processes).workers == 5


def test_precision_follows_the_machine(monkeypatch):
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: supported)  # noqa: B023
        assert resolve_auto(OptimConfig(), GPU, True).precision == expected
    assert resolve_auto(OptimConfig(), CPU, True).precision == "fp32"
    assert resolve_auto(OptimConfig(precision="bf16"), CPU, True).precision == "bf16"
    with pytest.raises(OptionError, match="--precision 'fp16' is unknown, expected one of auto, fp32, bf16"):
        OptimConfig(precision="fp16")


@pytest.mark.parametrize("method", ["coda", "l2p", "dualprompt", "apt"])
def test_bf16_is_for_the_blocks_alone(method):
    """Near the fp32 losses, but not them; everything that comes out or learns is fp32; selection does not change."""
    labels = torch.tensor([2, 3, 4, 3])
    pair, seen = make_pair(method=method), []
    pair.student.backbone.vit.blocks[0].attn.proj.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    exact = stage_losses(pair, "student", pixels(4), labels)
    with in_precision(pair, "bf16"):
        rough = stage_losses(pair, "student", pixels(4), labels)
        output = pair.student(pair.student.backbone.embed(pixels(4)), torch.ones(4, 24), "train", hidden_blocks=1)
    torch.stack(list(rough.values())).sum().backward()
    assert {torch.float32, torch.bfloat16} == set(seen)
    assert exact.keys() == rough.keys()
    for name, value in rough.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], atol=0.1, rtol=0.1)
    assert any(not torch.equal(rough[name], exact[name]) for name in exact)
    assert output.class_logits.dtype == output.hidden[0].dtype == torch.float32
    for value in pair.student.parameters():
        assert value.dtype == torch.float32
        assert value.grad is None or value.grad.dtype == torch.float32
    again = stage_losses(pair, "student", pixels(4), labels)
    assert all(torch.equal(again[name], exact[name]) for name in exact)


def compile_and_compare() -> None:
    """The backend is the eager one."""
    labels = torch.tensor([2, 3, 4, 3, 2])
    plain, compiled = (make_pair("none", depth=2, method="l2p") for _ in range(2))  # a block with a prompt, one without
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    compile_blocks(compiled, backend=backend)  # type: ignore[arg-type]  # PyTorch takes a function as well
    names = list(compiled.student.state_dict())
    assert names == list(plain.student.state_dict())
    for count in (5, 3):  # the last batch of an epoch is smaller
        results = []
        for pair in (plain, compiled):
            terms = stage_losses(pair, "student", pixels(count), labels[:count])
            pair.student.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            results.append([*terms.values(), *(v.grad for v in pair.student.parameters() if v.grad is not None)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert calls, "nothing was compiled"
    print("graphs", len(calls))


def test_compiled_blocks_compute_the_same():
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    result = Child(compile_and_compare).finished()
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("graphs ")


@pytest.mark.parametrize(("device", "wait"), [(CPU, 1), (GPU, STEPS_ON_A_GPU)])
def test_a_step_that_fails_is_named_however_late_it_is_looked_at(device, wait):
    told = []
    stage = Stage(task=3, tasks=5, role="student", epochs=9, images=100, batch_size=20)
    log = LossLog(stage, 4, device, lambda images, terms: told.append((images, terms)))
    for step in range(7):
        log.add(step, 10 + step, ("a", "b"), torch.tensor([step, 2.0 * step]))
        assert len(told) == (step + 1 if wait == 1 else 0)
    log.flush()
    assert told == [(10 + step, {"a": step, "b": 2.0 * step}) for step in range(7)]
    told.clear()

    def go_on():
        for step in range(7, 7 + wait + 3):
            log.add(step, 1, ("a", "b"), torch.tensor([1.0, float("nan") if step >= 8 else 1.0]))

    with pytest.raises(RunError, match=r"the student's b became nan in task 3, epoch 5, step 9: lower --lr"):
        go_on()
    assert told == [(1, {"a": 1.0, "b": 1.0})]
