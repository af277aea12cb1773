"""CODA-Prompt against a loop over images and components, and its promises about earlier tasks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_deploy.errors import OptionError
from cdl_deploy.run.method_options import CodaConfig
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.methods.coda import CodaPrompt, orthonormal_rows, rows_in_one_pass
from tests.training.naive import naive_coda_weights

SHAPE = NetworkShape(width=24, depth=6, query_width=16)


def grown(tasks: int, per_task: int = 3) -> CodaPrompt:
    method = CodaPrompt(SHAPE, per_task, prompt_length=2)
    for task in range(tasks):
        method.begin_task(torch.Generator().manual_seed(task))
    return method


def test_prompts_equal_a_slow_loop():
    method = grown(2)
    query = torch.randn(3, 16)
    selection = method(query, "test")
    assert sorted(selection.prompts) == [0, 1, 2, 3, 4]
    assert selection.losses == {}
    for index, prompt in selection.prompts.items():
        block = method.own_blocks()[index]
        assert prompt.prefix is not None
        for i in range(3):
            weights = naive_coda_weights(query[i], block.attentions.all(), block.keys.all())
            expected = sum(w * p for w, p in zip(weights, block.prompts.all(), strict=True))
            torch.testing.assert_close(prompt.prefix[0][i], expected[:2], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(prompt.prefix[1][i], expected[2:], atol=1e-5, rtol=1e-5)


def test_a_zero_query_gives_no_nan():
    prompts = grown(1)(torch.zeros(2, 16), "test").prompts
    assert torch.isfinite(prompts[0].prefix[0]).all()


@settings(max_examples=30, deadline=None)
@given(
    earlier=st.integers(0, 8),
    new=st.integers(1, 6),
    dimensions=st.integers(16, 40),
    apart=st.sampled_from([1.0, 1e-5, 0.0]),
    seed=st.integers(0, 99),
)
def test_new_rows_are_orthonormal_to_all_earlier_ones(earlier, new, dimensions, apart, seed):
    """Trained rows are not orthonormal; two of them may point nearly or exactly the same way."""
    random = torch.Generator().manual_seed(seed)
    before = torch.randn(earlier, dimensions, generator=random)
    if earlier > 1:
        before[-1] = before[0] + apart * before[-1]
    rows = orthonormal_rows(before, torch.randn(new, dimensions, generator=random))
    torch.testing.assert_close(rows @ rows.T, torch.eye(new), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows @ before.T, torch.zeros(new, earlier), atol=1e-4, rtol=0)


def test_one_pass_by_hand():
    """(1, 2, 3) less 1·(1, 0, 0) less 3/2·(1, 1, 0): (−3/2, 1/2, 3), not orthogonal to either; exactly, (0, 0, 1)."""
    earlier, drawn = torch.tensor([[1.0, 0, 0], [1, 1, 0]]), torch.tensor([[1.0, 2, 3]])
    left = torch.tensor([[-1.5, 0.5, 3.0]])
    torch.testing.assert_close(rows_in_one_pass(earlier, drawn), left / left.norm())
    torch.testing.assert_close(orthonormal_rows(earlier, drawn).abs(), torch.tensor([[0.0, 0, 1]]))


def test_one_pass_is_gram_schmidt_until_rows_are_trained():
    """The second drawn row meets the first new one, too. After training, cosines remain."""
    random = torch.Generator().manual_seed(0)
    first, drawn = torch.zeros(0, 16), torch.randn(4, 16, generator=random)
    new = rows_in_one_pass(first, drawn)
    torch.testing.assert_close(new, orthonormal_rows(first, drawn), atol=1e-6, rtol=0)
    trained = new + 0.1 * torch.randn(4, 16, generator=random)
    later = rows_in_one_pass(trained, torch.randn(4, 16, generator=random))
    torch.testing.assert_close(later.norm(dim=1), torch.ones(4))
    cosines = (later @ trained.T) / trained.norm(dim=1)
    assert 0.01 < cosines.abs().max() < 0.5


def test_the_option_reaches_every_component():
    shape, drawn = NetworkShape(24, 6, 16), [torch.Generator().manual_seed(0) for _ in range(2)]
    config = [CodaConfig(components_per_task=2, component_start=start) for start in ("exact", "one-pass")]
    exact, one_pass = (CodaPrompt.build(shape, it, torch.Generator()) for it in config)
    for method, generator in zip((exact, one_pass), drawn, strict=True):
        method.begin_task(generator)
        for value in method.parameters():
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(value.numel()))
        method.begin_task(torch.Generator().manual_seed(1))
    for part in ("keys", "attentions", "prompts"):
        ours, theirs = (getattr(method.own_blocks()[0], part) for method in (exact, one_pass))
        assert torch.equal(ours.frozen, theirs.frozen)
        assert not torch.allclose(ours.trainable, theirs.trainable, atol=1e-3)


def test_learning_goes_on_when_the_query_has_no_direction_left():
    method = grown(tasks=9)  # 27 components with keys of 16 dimensions
    keys = method.own_blocks()[0].keys.all()
    assert keys.shape == (27, 16)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(27))
    last = keys[-3:]
    torch.testing.assert_close(last @ last.T, torch.eye(3), atol=1e-5, rtol=0)


def test_more_components_than_dimensions_are_refused():
    with pytest.raises(OptionError, match="17 components a task cannot be orthogonal in 16 dimensions"):
        grown(1, per_task=17)


def test_growing_equals_preallocating():
    """A pool that held all tasks' components from the start, of which only those of tasks so far take part."""
    method, pool = CodaPrompt(SHAPE, 3, prompt_length=2), grown(4)
    for task in range(4):
        method.begin_task(torch.Generator().manual_seed(task))
        for index, block in method.own_blocks().items():
            for part in ("keys", "attentions", "prompts"):
                whole = getattr(pool.own_blocks()[index], part).all()
                assert torch.equal(getattr(block, part).all(), whole[: 3 * (task + 1)])


def test_earlier_components_stand_still_to_the_bit():
    method = grown(2)
    before = {name: value.clone() for name, value in method.state_dict().items() if name.endswith("frozen")}
    optimizer = torch.optim.Adam([value for value in method.parameters() if value.requires_grad], lr=0.1)
    for _ in range(3):
        prompts = method(torch.randn(4, 16), "train").prompts
        loss = sum(row.square().sum() for prompt in prompts.values() for row in prompt.prefix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before
    for name, value in before.items():
        assert torch.equal(method.state_dict()[name], value)


def test_orthogonality_loss_by_hand():
    method = CodaPrompt(SHAPE, 2, prompt_length=1, orthogonality=0.5)
    method.begin_task(torch.Generator().manual_seed(0))
    fresh = method(torch.randn(1, 16), "train").losses["orthogonality"]
    torch.testing.assert_close(fresh, torch.tensor(0.0), atol=1e-6, rtol=0)
    with torch.no_grad():
        method.own_blocks()[0].keys.trainable[0] *= 2  # X Xᵀ − I = diag(3, 0): mean of squares 9 / 4
    loss = method(torch.randn(1, 16), "train").losses["orthogonality"]
    torch.testing.assert_close(loss, torch.tensor(0.5 * 9 / 4), atol=1e-5, rtol=0)
    assert "orthogonality" not in method(torch.randn(1, 16), "test").losses


def test_a_model_with_too_few_blocks_is_refused():
    with pytest.raises(OptionError, match=r"prompts blocks 2 to 6 \(counted from 0\), but the model has 6 blocks"):
        CodaPrompt(NetworkShape(24, 6, 16, first_block=2))
