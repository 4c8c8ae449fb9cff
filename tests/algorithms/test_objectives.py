"""Losses, against numbers worked out by hand; what padding, order and splitting must not change."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from vla_rl.algorithms.objectives import (
    action_log_probs,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    token_cross_entropy,
)

NAN, INF = float("nan"), float("inf")
LN2 = math.log(2)


def test_clipped_surrogate_by_hand() -> None:
    # clip (.2, .28). Ratios 2, 2, .5, .5, 1 with advantages 1, -1, 1, -1, 3:
    #   min(2, 1.28) = 1.28 (clipped);  min(-2, -1.28) = -2;  min(.5, .8) = .5;  min(-.5, -.8) = -.8 (clipped);  3
    # Sum 1.98, loss -1.98 / 5 = -.396. Ratio: mean 6/5, |r - 1| mean (1 + 1 + .5 + .5 + 0)/5 = .6.
    # k3: r - 1 - ln r = 2 x (1 - ln 2) + 2 x (-.5 + ln 2) + 0 = 1, mean .2.
    log_probs = torch.tensor([LN2, LN2, -LN2, -LN2, 0.0]).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    loss, stats = clipped_surrogate(log_probs, torch.zeros(5), advantages, torch.ones(5, dtype=torch.bool), 0.2, 0.28, 5)
    assert loss.item() == pytest.approx(-0.396)
    expected = {
        "ratio_mean": 1.2,
        "ratio_max": 2.0,
        "ratio_min": 0.5,
        "ratio_deviation": 0.6,
        "approx_kl": 0.2,
        "clip_fraction": 0.4,
    }
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected, abs=1e-6)
    loss.backward()
    # d loss / d log p = -r A / 5 where not clipped, 0 where clipped.
    assert log_probs.grad is not None
    assert torch.allclose(log_probs.grad, torch.tensor([0.0, 2.0, -0.5, 0.0, -3.0]) / 5)


def test_an_unchanged_policy_has_ratio_one_and_the_policy_gradient() -> None:
    log_probs = torch.tensor([-1.0, -2.0]).requires_grad_()
    loss, stats = clipped_surrogate(
        log_probs, log_probs.detach(), torch.tensor([2.0, -4.0]), torch.ones(2, dtype=torch.bool), 0.2, 0.2, 2
    )
    loss.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [-1.0, 2.0]
    assert stats["ratio_deviation"] == 0 and stats["approx_kl"] == 0 and stats["clip_fraction"] == 0


def test_the_surrogate_of_a_huge_ratio_is_finite() -> None:
    log_probs = torch.tensor([-1.0, -900.0]).requires_grad_()
    loss, stats = clipped_surrogate(
        log_probs, torch.tensor([-900.0, -1.0]), torch.tensor([-1.0, -1.0]), torch.ones(2, dtype=torch.bool), 0.2, 0.2, 2
    )
    loss.backward()
    assert math.isfinite(loss.item()) and log_probs.grad is not None and log_probs.grad.isfinite().all()
    assert all(value.isfinite() for value in stats.values())


def test_action_log_probs_sum_the_tokens_of_each_action() -> None:
    # Two actions of three tokens: 1+2+3 and 4+5+6. A transposed layout would give 1+3+5 and 2+4+6.
    assert action_log_probs(torch.tensor([[1.0, 2, 3, 4, 5, 6]]), 2, 3).tolist() == [[6.0, 15.0]]
    with pytest.raises(ValueError, match="5 token log-probs are not 2 actions of 3"):
        action_log_probs(torch.zeros(5), 2, 3)


def test_ratio_of_an_action_is_the_product_of_its_tokens() -> None:
    # Token ratios 2 and .5 make the action's ratio 1: nothing is clipped, the loss is -A.
    new, old = torch.tensor([[LN2, -LN2]]), torch.zeros(1, 2)
    new, old = action_log_probs(new, 1, 2), action_log_probs(old, 1, 2)
    loss, stats = clipped_surrogate(new, old, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 0.2, 0.2, 1)
    assert loss.item() == pytest.approx(-1.0) and stats["clip_fraction"] == 0


def test_clipped_value_loss_by_hand() -> None:
    # clip .2. v = 1, old 0, R = 2: clipped to .2, max((1-2)^2, (.2-2)^2) = 3.24 (clipped).
    #          v = 1, old 0, R = -1: max(4, 1.44) = 4.    v = .1, old 0, R = 0: .01.  Loss .5 * 7.25 / 3.
    values = torch.tensor([1.0, 1.0, 0.1]).requires_grad_()
    loss, stats = clipped_value_loss(
        values, torch.zeros(3), torch.tensor([2.0, -1.0, 0.0]), torch.ones(3, dtype=torch.bool), 0.2, 3
    )
    assert loss.item() == pytest.approx(0.5 * 7.25 / 3)
    assert stats["value_clip_fraction"].item() == pytest.approx(1 / 3)
    loss.backward()
    # The clipped term has no gradient; the others (v - R) / 3.
    assert values.grad is not None and torch.allclose(values.grad, torch.tensor([0.0, 2 / 3, 0.1 / 3]))


def test_an_infinite_value_clip_is_the_squared_error() -> None:
    loss, stats = clipped_value_loss(
        torch.tensor([5.0]), torch.tensor([0.0]), torch.tensor([2.0]), torch.ones(1, dtype=torch.bool), INF, 1
    )
    assert loss.item() == pytest.approx(4.5) and stats["value_clip_fraction"] == 0


def test_the_dual_clip_bounds_what_a_negative_advantage_costs() -> None:
    # clip (.2, .28), dual clip 3. Ratio 8 with A = -1: min(-8, -1.28) = -8, bounded at -3: no gradient.
    # Ratio 2 with A = -1: -2. Ratio 8 with A = 1: 1.28, as ever. Loss (3 + 2 - 1.28) / 3, two of three clipped.
    log_probs = torch.tensor([3 * LN2, LN2, 3 * LN2]).requires_grad_()
    advantages, every = torch.tensor([-1.0, -1.0, 1.0]), torch.ones(3, dtype=torch.bool)
    loss, stats = clipped_surrogate(log_probs, torch.zeros(3), advantages, every, 0.2, 0.28, 3, dual_clip=3.0)
    assert loss.item() == pytest.approx((3 + 2 - 1.28) / 3) and stats["clip_fraction"].item() == pytest.approx(2 / 3)
    loss.backward()
    assert log_probs.grad is not None and torch.allclose(log_probs.grad, torch.tensor([0.0, 2 / 3, 0.0]))


def test_infinite_clips_are_the_plain_importance_weighted_objective() -> None:
    # Ratios 8 and 1/8 with A = 1 and -1: loss -(8 - 1/8) / 2.
    loss, stats = clipped_surrogate(
        torch.tensor([3 * LN2, -3 * LN2]), torch.zeros(2), torch.tensor([1.0, -1.0]), torch.ones(2, dtype=torch.bool), INF, INF, 2
    )
    assert loss.item() == pytest.approx(-(8 - 0.125) / 2, rel=1e-5) and stats["clip_fraction"] == 0


def test_weights_multiply_the_terms_of_the_surrogate() -> None:
    # Ratio 1, advantages 1 and 3, weights .5 and 2: -(.5 + 6) / 4. A third entry is masked, whatever its weight.
    zeros, mask = torch.zeros(3), torch.tensor([True, True, False])
    loss, _ = clipped_surrogate(
        zeros, zeros, torch.tensor([1.0, 3.0, 9.0]), mask, 0.2, 0.2, 4, weights=torch.tensor([0.5, 2.0, NAN])
    )
    assert loss.item() == pytest.approx(-6.5 / 4)


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([True, True, True, False])
    # Returns (1, 2, 3), variance 2/3; residuals (0, 0, 1), variance 2/9: 1 - 1/3. A constant offset does not matter.
    returns = torch.tensor([1.0, 2.0, 3.0, NAN])
    assert explained_variance(torch.tensor([1.0, 2.0, 2.0, INF]), returns, mask).item() == pytest.approx(2 / 3)
    assert explained_variance(torch.tensor([11.0, 12.0, 12.0, INF]), returns, mask).item() == pytest.approx(2 / 3)
    assert explained_variance(torch.zeros(3), torch.full((3,), 0.1), torch.ones(3, dtype=torch.bool)) == 0


def test_token_cross_entropy_by_hand() -> None:
    # Logits (ln 3, 0): probabilities 3/4, 1/4. Targets 0 and 1: -ln(3/4) - ln(1/4) = ln(16/3). The first is right.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [NAN, INF]])
    loss, stats = token_cross_entropy(logits, torch.tensor([0, 1, -100]), torch.tensor([True, True, False]), 2)
    assert loss.item() == pytest.approx(math.log(16 / 3) / 2)
    assert stats["token_accuracy"].item() == pytest.approx(0.5)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "surrogate": lambda x, old, a, c, mask, n: clipped_surrogate(x[..., 0], old, a, mask, 0.2, 0.28, n)[0],
    "value": lambda x, old, a, c, mask, n: clipped_value_loss(x[..., 0], old, a, mask, 0.2, n)[0],
    "dual clip": lambda x, old, a, c, mask, n: clipped_surrogate(
        x[..., 0], old, a, mask, 0.2, 0.28, n, dual_clip=1.5, weights=old.exp()
    )[0],
    "cross entropy": lambda x, old, a, c, mask, n: token_cross_entropy(x, c, mask, n)[0],
}


def gradient(loss: Loss, batch: tuple[Tensor, ...], denominator: float) -> Tensor:
    x = batch[0].clone().requires_grad_()
    loss(x, *batch[1:], denominator).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 6), poison=st.sampled_from([0.0, NAN, INF, -INF]))
@settings(max_examples=25, deadline=None)
def test_padding_order_and_splitting_never_change_the_gradient(name: str, seed: int, rows: int, poison: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, old, advantages = torch.randn(rows, 3, 4, generator=draw), *torch.randn(2, rows, 3, generator=draw)
    classes, mask = torch.randint(0, 4, (rows, 3), generator=draw), torch.rand(rows, 3, generator=draw) < 0.7
    mask[0, 0] = True
    batch, loss, n = (x, old, advantages, classes, mask), LOSSES[name], float(mask.sum())
    expected = gradient(loss, batch, n)
    assert (expected[~mask] == 0).all()

    poisoned = tuple(torch.where(mask[..., None] if t.dim() == 3 else mask, t, poison) for t in (x, old, advantages))
    assert torch.allclose(gradient(loss, (*poisoned, torch.where(mask, classes, -100), mask), n), expected)

    order = torch.randperm(rows, generator=draw)
    assert torch.allclose(gradient(loss, tuple(t[order] for t in batch), n), expected[order])

    padded = tuple(torch.cat([t, torch.full_like(t[:, :1], 0 if t.dtype != torch.float32 else poison)], 1) for t in batch)
    assert torch.allclose(gradient(loss, padded, n)[:, :3], expected)

    cut = int(torch.randint(1, rows, (), generator=draw))
    parts = [gradient(loss, tuple(t[s] for t in batch), n) for s in (slice(None, cut), slice(cut, None))]
    assert torch.allclose(torch.cat(parts), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask_gives_zero_loss_and_gradient(name: str) -> None:
    empty = torch.zeros(2, 3, dtype=torch.bool)
    batch = (torch.full((2, 3, 4), NAN), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), empty)
    assert (gradient(LOSSES[name], batch, 5.0) == 0).all()


@pytest.mark.parametrize("denominator", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_nothing_valid_is_a_loss_of_zero(denominator: float | Tensor) -> None:
    x, mask = torch.full((2, 3), NAN, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    losses = [
        clipped_surrogate(x, x.detach(), x.detach(), mask, 0.2, 0.2, denominator)[0],
        clipped_value_loss(x, x.detach(), x.detach(), mask, 0.2, denominator)[0],
        token_cross_entropy(x, torch.zeros(2), mask[:, 0], denominator)[0],
    ]
    for loss in losses:
        assert loss.item() == 0
        x.grad = None
        loss.backward()
        assert x.grad is not None and not x.grad.any()
