"""Advantages, against numbers worked out by hand and against their defining properties."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vla_rl.algorithms.advantages import (
    discounted_returns,
    gae,
    group_centred,
    group_mean,
    group_relative,
    leave_one_out,
    normalise,
)

NAN, INF = float("nan"), float("inf")


def test_gae_of_a_truncated_and_a_terminated_episode() -> None:
    # gamma .5, lambda .5, rewards (1, 0, 2), values (1, 2, 3), value of the final observation 4.
    # Truncated: d2 = 2 + .5*4 - 3 = 1;   d1 = 0 + .5*3 - 2 = -.5;   d0 = 1 + .5*2 - 1 = 1
    #            A2 = 1;  A1 = -.5 + .25*1 = -.25;  A0 = 1 + .25*(-.25) = .9375
    # Terminated: d2 = 2 - 3 = -1;  A2 = -1;  A1 = -.5 - .25 = -.75;  A0 = 1 - .1875 = .8125
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]] * 2), torch.tensor([[1.0, 2.0, 3.0]] * 2)
    advantages, returns = gae(
        rewards, values, torch.ones(2, 3, dtype=torch.bool), torch.tensor([False, True]), torch.tensor([4.0, 4.0]), 0.5, 0.5
    )
    assert advantages.tolist() == [[0.9375, -0.25, 1.0], [0.8125, -0.75, -1.0]]
    assert returns.tolist() == [[1.9375, 1.75, 4.0], [1.8125, 1.25, 2.0]]


def test_gae_bootstraps_from_the_final_observation_not_from_the_padding() -> None:
    # One real turn: A0 = r + gamma * final - v = 1 + .9*10 - 2 = 8, whatever lies beyond.
    advantages, returns = gae(
        torch.tensor([[1.0, NAN, INF]]),
        torch.tensor([[2.0, INF, NAN]]),
        torch.tensor([[True, False, False]]),
        torch.tensor([False]),
        torch.tensor([10.0]),
        0.9,
        0.95,
    )
    assert torch.allclose(advantages, torch.tensor([[8.0, 0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[10.0, 0.0, 0.0]]))


def test_the_final_value_of_a_terminated_episode_is_never_read() -> None:
    arguments = (torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([True]))
    advantages, _ = gae(*arguments, torch.tensor([NAN]), 1.0, 1.0)
    assert advantages.tolist() == [[2.0, 1.0]]


@given(
    seed=st.integers(0, 10_000),
    turns=st.integers(1, 7),
    padding=st.integers(0, 4),
    gamma=st.floats(0, 1),
    terminated=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_lambda_one_is_the_discounted_return(seed: int, turns: int, padding: int, gamma: float, terminated: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 1, turns + padding, generator=draw, dtype=torch.float64)
    final = torch.randn(1, generator=draw, dtype=torch.float64)
    mask = (torch.arange(turns + padding) < turns)[None]
    _, returns = gae(rewards, values, mask, torch.tensor([terminated]), final, gamma, 1.0)
    for t in range(turns):
        expected = sum(gamma ** (k - t) * rewards[0, k].item() for k in range(t, turns))
        expected += 0.0 if terminated else gamma ** (turns - t) * final.item()
        assert returns[0, t].item() == pytest.approx(expected, abs=1e-9)
    assert (returns[0, turns:] == 0).all()


@given(seed=st.integers(0, 10_000), lam=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_gae_does_not_depend_on_padding_or_on_other_episodes(seed: int, lam: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 5, generator=draw)
    lengths = torch.randint(1, 6, (3,), generator=draw)
    mask = torch.arange(5) < lengths[:, None]
    terminated, final = torch.rand(3, generator=draw) < 0.5, torch.randn(3, generator=draw)
    advantages, _ = gae(rewards, values, mask, terminated, final, 0.97, lam)
    for b, n in enumerate(lengths.tolist()):
        alone, _ = gae(
            rewards[b : b + 1, :n], values[b : b + 1, :n], mask[b : b + 1, :n], terminated[b : b + 1], final[b : b + 1], 0.97, lam
        )
        assert torch.equal(advantages[b, :n], alone[0])


def test_gae_refuses_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"must all be \[B, T\]"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3), torch.zeros(2), torch.zeros(2), 1, 1)
    with pytest.raises(ValueError, match=r"must be \[B\]"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(3), torch.zeros(2), 1, 1)


def test_group_relative_by_hand() -> None:
    # Group 7: (1, 0, 0, 1): mean .5, unbiased variance 4*.25/3 = 1/3, so +-.5*sqrt(3). Group -2: (3, 1): mean 2, variance 2.
    # Group 5 has one member, group 9 no spread.
    returns = torch.tensor([1.0, 3.0, 0.0, 5.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    groups = torch.tensor([7, -2, 7, 5, 7, -2, 7, 9, 9])
    a, b = 0.5 * math.sqrt(3), 1 / math.sqrt(2)
    assert torch.allclose(group_relative(returns, groups), torch.tensor([a, b, -a, 0, -a, -b, a, 0, 0]))


def test_a_group_that_differs_by_rounding_only_has_no_spread() -> None:
    returns = torch.tensor([0.1, 0.1 + 1e-8, 0.3 - 0.2, 0.1])
    assert group_relative(returns, torch.zeros(4, dtype=torch.long)).tolist() == [0, 0, 0, 0]
    tenth = torch.full((7,), 0.1)
    assert (group_relative(tenth, torch.zeros(7, dtype=torch.long)) == 0).all()


@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5), scale=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_group_relative_ignores_order_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    returns = torch.randn(12, generator=draw, dtype=torch.float64)
    groups = torch.randint(0, 3, (12,), generator=draw)
    advantages = group_relative(returns, groups)
    order = torch.randperm(12, generator=draw)
    assert torch.allclose(group_relative(returns[order], groups[order]), advantages[order])
    assert torch.allclose(group_relative(returns * scale + shift, groups * 31 - 4), advantages, atol=1e-6)


def test_group_relative_of_nothing_and_of_mismatched_shapes() -> None:
    assert group_relative(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
    with pytest.raises(ValueError, match="must both be"):
        group_relative(torch.zeros(3), torch.zeros(2, dtype=torch.long))


def test_normalise_by_hand_and_with_poison_outside_the_mask() -> None:
    # Valid (1, 3): mean 2, unbiased standard deviation sqrt(2).
    result = normalise(torch.tensor([[1.0, NAN], [3.0, INF]]), torch.tensor([[True, False], [True, False]]))
    assert torch.allclose(result, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]) / math.sqrt(2))


def test_normalise_without_spread_or_with_one_entry_is_zero() -> None:
    assert normalise(torch.tensor([0.1, 0.1, 0.1]), torch.ones(3, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert normalise(torch.tensor([5.0, 1.0]), torch.tensor([True, False])).tolist() == [0, 0]
    assert normalise(torch.tensor([5.0, 1.0]), torch.tensor([False, False])).tolist() == [0, 0]


def test_discounted_returns_by_hand() -> None:
    # gamma .5, rewards (1, 2, 4): 4, then 2 + 2 = 4, then 1 + 2 = 3. The second episode ends after one turn.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    result = discounted_returns(torch.tensor([[1.0, 2.0, 4.0], [5.0, NAN, INF]]), mask, 0.5)
    assert result.tolist() == [[3.0, 4.0, 4.0], [5.0, 0.0, 0.0]]


def test_group_mean_and_leave_one_out_by_hand() -> None:
    # Group 7: (1, 0, 2), mean 1. Leave one out: 1 - (0+2)/2 = 0, 0 - 3/2 = -1.5, 2 - 1/2 = 1.5. Group 3 has one member.
    returns, groups = torch.tensor([1.0, 9.0, 0.0, 2.0]), torch.tensor([7, 3, 7, 7])
    assert group_mean(returns, groups).tolist() == [1.0, 9.0, 1.0, 1.0]
    assert leave_one_out(returns, groups).tolist() == [0.0, 0.0, -1.5, 1.5]


def test_group_centred_by_hand() -> None:
    # Groups (1, 0) and (1, 1): centred +-.5 and 0. All four returns: mean .75, unbiased variance .75/3 = .25, deviation .5.
    returns, groups = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert group_centred(returns, groups).tolist() == [0.5, -0.5, 0.0, 0.0]
    assert torch.allclose(group_centred(returns, groups, scale=True), torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert group_centred(torch.ones(4), groups, scale=True).tolist() == [0, 0, 0, 0]
