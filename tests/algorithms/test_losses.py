"""The losses of whole compositions, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vla_rl.algorithms.composition import compose
from vla_rl.algorithms.losses import action_shares, demonstration_loss, policy_loss, trajectory_loss
from vla_rl.algorithms.parts import Tokens, Trajectories
from vla_rl.config import ObjectiveConfig

LN2 = math.log(2)


def tokens(log_ratio: torch.Tensor, mask: torch.Tensor, advantages: list[float]) -> Tokens:
    """Tokens whose log-prob has changed by `log_ratio`; four classes, all alike."""
    return Tokens.clean(
        mask,
        log_probs=log_ratio,
        distribution=torch.full((*mask.shape, 4), -math.log(4)),
        behaviour_log_probs=torch.zeros(mask.shape),
        classes=torch.zeros(mask.shape, dtype=torch.long),
        advantages=torch.tensor(advantages),
        success=torch.ones(len(mask), dtype=torch.bool),
        weights=torch.ones(mask.shape),
    )


EXECUTED = torch.tensor([[True, True], [True, False], [True, False]])
"""Trajectory 0: two turns, three actions; trajectory 1: one turn, one action. Two tokens an action."""
OWNER = torch.tensor([0, 0, 1])


def test_shares_of_both_averagings() -> None:
    share, size = action_shares(EXECUTED, OWNER, "all")
    assert share.tolist() == [1, 1, 1] and size == 4
    share, size = action_shares(EXECUTED, 5 - OWNER, "trajectories")
    assert share.tolist() == pytest.approx([1 / 3, 1 / 3, 1]) and size.item() == pytest.approx(2)


def test_grpo_is_the_mean_over_trajectories_of_the_mean_over_tokens() -> None:
    # Advantages 1 (trajectory 0) and -1. Trajectory 0 has six tokens of ratios 2, 1, 1, 1, 1, .5, clipped at 1.28:
    # (1.28 + 4 + .5) / 6; trajectory 1 has two of ratios 2 and 1: -(2 + 1) / 2. Loss: -half of their sum.
    log_ratio = torch.tensor([[LN2, 0, 0, 0], [0, -LN2, 9, 9], [LN2, 0, 9, 9]])
    grpo = compose(ObjectiveConfig(name="grpo"))
    seen = tokens(log_ratio, EXECUTED.repeat_interleave(2, 1), [1.0, 1.0, -1.0])
    loss, stats = policy_loss(grpo, seen, *action_shares(EXECUTED, OWNER, grpo.average), action_dim=2)
    expected = -((1.28 + 4 + 0.5) / 6 - 1.5) / 2
    assert loss.item() == pytest.approx(expected) and stats["loss"].item() == pytest.approx(expected)
    # Of actions: four, with ratios 2, 1, .5, 2: k3 (2 - 1 - ln 2) twice, 0, (.5 - 1 + ln 2); entropy of two uniform tokens.
    assert stats["approx_kl"].item() == pytest.approx((2 * (1 - LN2) + (LN2 - 0.5)) / 4, rel=1e-5)
    assert stats["entropy"].item() == pytest.approx(2 * math.log(4))


def test_token_level_averaging_counts_every_token_the_same() -> None:
    # The same eight tokens, all alike in weight: -(1.28 + 4 + .5 - 3) / 8 for DAPO (clip .2, .28).
    log_ratio = torch.tensor([[LN2, 0, 0, 0], [0, -LN2, 9, 9], [LN2, 0, 9, 9]])
    dapo = compose(ObjectiveConfig(name="dapo"))
    seen = tokens(log_ratio, EXECUTED.repeat_interleave(2, 1), [1.0, 1.0, -1.0])
    loss, _ = policy_loss(dapo, seen, *action_shares(EXECUTED, OWNER, dapo.average), action_dim=2)
    assert loss.item() == pytest.approx(-(1.28 + 4 + 0.5 - 3) / 8)


def test_ppo_takes_the_ratio_of_actions() -> None:
    # Actions of ratios 2 (clipped at 1.2), 1, .5 with advantage 1, and 2 with -1: -(1.2 + 1 + .5 - 2) / 4.
    log_ratio = torch.tensor([[LN2, 0, 0, 0], [0, -LN2, 9, 9], [LN2, 0, 9, 9]])
    ppo = compose(ObjectiveConfig(name="ppo"))
    seen = tokens(log_ratio, EXECUTED.repeat_interleave(2, 1), [1.0, 1.0, -1.0])
    loss, _ = policy_loss(ppo, seen, *action_shares(EXECUTED, OWNER, ppo.average), action_dim=2)
    assert loss.item() == pytest.approx(-(1.2 + 1 + 0.5 - 2) / 4)


def test_a_regulariser_has_the_average_of_the_objective() -> None:
    # Entropy of a token ln 4 everywhere: coefficient -.1 of the negative cost, whatever the averaging. Advantages 0.
    for name in ("grpo", "dapo"):
        objective = compose(ObjectiveConfig(name=name, regularisers={"entropy": 0.1}))
        seen = tokens(torch.zeros(3, 4), EXECUTED.repeat_interleave(2, 1), [0.0, 0.0, 0.0])
        loss, stats = policy_loss(objective, seen, *action_shares(EXECUTED, OWNER, objective.average), action_dim=2)
        assert loss.item() == pytest.approx(-0.1 * math.log(4), rel=1e-5)
        assert stats["entropy_cost"].item() == pytest.approx(-math.log(4), rel=1e-5)


def whole(log_ratio: list[float]) -> Trajectories:
    return Trajectories(
        log_ratio=torch.tensor(log_ratio).requires_grad_(),
        tokens=torch.tensor([6.0, 2.0]),
        advantages=torch.tensor([1.0, -1.0]),
        success=torch.tensor([1.0, 0.0]),
        groups=torch.tensor([0, 0]),
    )


def test_gspo_takes_the_geometric_mean_of_a_trajectory() -> None:
    # s = 2^(1/1) with six tokens of log-ratio ln 2 in all 6 ln 2; and 1. Clip (.2, .3): -(1.3 - 1) / 2.
    gspo = compose(ObjectiveConfig(name="gspo", clip_low=0.2, clip_high=0.3))
    seen = whole([6 * LN2, 0.0])
    loss, stats = trajectory_loss(gspo, seen)
    assert loss.item() == pytest.approx(-(1.3 - 1) / 2) and stats["clip_fraction"] == 0.5
    loss.backward()
    # The first is clipped; d(-(-s)/2)/d log_ratio = s / 2 / tokens = 1 / 4 for the second.
    assert seen.log_ratio.grad is not None and seen.log_ratio.grad.tolist() == pytest.approx([0.0, 0.25])


def test_slopes_are_the_gradient_of_the_trajectory_loss() -> None:
    gspo = compose(ObjectiveConfig(name="gspo"))
    log_ratio = torch.zeros(3, 4, requires_grad=True)
    seen = tokens(log_ratio, EXECUTED.repeat_interleave(2, 1), [1.0, 1.0, -1.0])
    loss, stats = policy_loss(gspo, seen, torch.ones(3), 4.0, 2, slopes=torch.tensor([2.0, 2.0, -3.0]))
    loss.backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [[2, 2, 2, 2], [2, 2, 0, 0], [-3, -3, 0, 0]] and "loss" not in stats


def test_pacs_is_the_mean_cross_entropy_and_nothing_else() -> None:
    # Scores (1, -1): logits 2 and -2, both right: ln(1 + e^-2), weights 1 (as many of each).
    loss, stats = trajectory_loss(compose(ObjectiveConfig(name="pacs")), whole([1.0, -1.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    assert stats["outcome_cost"].item() == pytest.approx(loss.item())


def test_demonstrations_are_averaged_over_their_own_tokens() -> None:
    # -log p = ln 2 and ln 4 of two executed tokens of four: .05 * (ln 2 + ln 4) / 2.
    mask = torch.tensor([[True, True, False, False]])
    seen = tokens(torch.tensor([[-LN2, -2 * LN2, 9.0, 9.0]]), mask, [1.0])
    loss, stats = demonstration_loss(compose(ObjectiveConfig(name="rpo")), seen, 2)
    assert loss.item() == pytest.approx(0.05 * 1.5 * LN2, rel=1e-5) and stats["imitation_cost"].item() == pytest.approx(1.5 * LN2)
