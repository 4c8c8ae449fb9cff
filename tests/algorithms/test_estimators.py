"""The advantage estimators that a configuration can name, against numbers worked out by hand."""

import math

import pytest
import torch

from vla_rl.algorithms.divergences import DERIVATIVES
from vla_rl.algorithms.estimators import (
    batch,
    critic,
    divergence,
    episode_returns,
    group,
    group_and_batch,
    none,
    others,
    reinforcement,
)
from vla_rl.algorithms.turn_batch import Episodes

NAN = float("nan")


def episodes(**changes: torch.Tensor) -> Episodes:
    """Two groups of two: returns (1, 0) and (1, 1); the episodes have 2, 1, 1 and 2 turns."""
    record = {
        "rewards": torch.tensor([[0.0, 1.0], [0.0, NAN], [1.0, NAN], [0.0, 1.0]]),
        "values": torch.tensor([[0.5, 0.5], [0.5, NAN], [0.5, NAN], [0.5, 0.5]]),
        "mask": torch.tensor([[True, True], [True, False], [True, False], [True, True]]),
        "terminated": torch.tensor([True, False, True, True]),
        "success": torch.tensor([True, False, True, True]),
        "final_values": torch.tensor([0.0, 0.25, 0.0, 0.0]),
        "groups": torch.tensor([4, 4, 2, 2]),
    }
    return Episodes(**record | changes)


def test_returns_leave_out_padding() -> None:
    assert episode_returns(episodes()).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_group_gives_every_turn_its_episodes_advantage() -> None:
    # Group 4: (1, 0), mean .5, unbiased deviation sqrt(.5): +-.5 / sqrt(.5) = +-sqrt(.5). Group 2 has no spread.
    half = math.sqrt(0.5)
    advantages, returns = group(episodes(), 0.9, 0.9)
    assert torch.allclose(advantages, torch.tensor([[half, half], [-half, 0.0], [0.0, 0.0], [0.0, 0.0]])) and returns is None
    plain, _ = group(episodes(), 0.9, 0.9, deviation=False)
    assert plain.tolist() == [[0.5, 0.5], [-0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_others_is_the_distance_from_the_siblings() -> None:
    assert others(episodes(), 0.9, 0.9)[0].tolist() == [[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_batch_normalises_discounted_returns_over_turns() -> None:
    # gamma .5: returns to go (.5, 1), (0), (1), (.5, 1). Mean 4/6 = 2/3; squared distances 1/36, 1/9, 4/9, 1/9, 1/36, 1/9:
    # sum 30/36; unbiased variance (5/6)/5 = 1/6.
    advantages, returns = batch(episodes(), 0.5, 0.9)
    expected = (torch.tensor([[0.5, 1.0], [0.0, 0.0], [1.0, 0.0], [0.5, 1.0]]) - 2 / 3) * math.sqrt(6)
    assert torch.allclose(advantages, torch.where(episodes().mask, expected, 0.0)) and returns is None


def test_group_and_batch_divides_by_the_deviation_of_all() -> None:
    # All returns (1, 0, 1, 1): unbiased deviation .5, so +-.5 / .5.
    assert torch.allclose(
        group_and_batch(episodes(), 0.9, 0.9)[0], torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    )


def test_reinforcement_weighs_successes_and_failures() -> None:
    weighted, _ = reinforcement(episodes(), 0.9, 0.9, positive=0.1)
    assert torch.allclose(weighted, torch.tensor([[0.1, 0.1], [-1.0, 0.0], [0.1, 0.0], [0.1, 0.1]]))
    positive, _ = reinforcement(episodes(), 0.9, 0.9, negative=0.0)
    assert positive.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]


def test_critic_is_normalised_gae_with_returns() -> None:
    # gamma = lambda = 1. Episode 0: deltas (0, .5): A = (.5, .5); 1: .25 - .5 = -.25 (bootstrap .25); 2: .5; 3: (.5, .5).
    # Mean (5 * .5 - .25) / 6 = .375, distances .125 x 5 and -.625: variance (5 * .015625 + .390625) / 5 = .09375.
    advantages, returns = critic(episodes(), 1.0, 1.0)
    expected = (torch.tensor([[0.5, 0.5], [-0.25, 0.0], [0.5, 0.0], [0.5, 0.5]]) - 0.375) / math.sqrt(0.09375)
    assert torch.allclose(advantages, torch.where(episodes().mask, expected, 0.0))
    assert returns is not None and returns.tolist() == [[1.0, 1.0], [0.25, 0.0], [1.0, 0.0], [1.0, 1.0]]


def test_divergence_by_hand() -> None:
    # beta 1. Group 4: R = (1, 0), log pi/pi_ref = (0, ln 2): scores 1 and -ln 2, so Z = (e + .5) / 2.
    # log t = log Z - score; reverse KL: -f' = -(log t + 1) = score - log Z - 1. Leave one out: the difference of the two
    # scores, +-(1 + ln 2). Group 2: equal scores.
    log_ratio = torch.tensor([0.0, math.log(2), 0.3, 0.3])
    gap = 1 + math.log(2)
    advantages, _ = divergence(episodes(log_ratio=log_ratio), 0.9, 0.9, kind="reverse", beta=1.0)
    assert torch.allclose(advantages, torch.tensor([[gap, gap], [-gap, 0.0], [0.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    # Jensen-Shannon: -f'(t) = log(1 + 1/t) - log 2 with t = Z e^-score.
    z = (math.e + 0.5) / 2
    js = math.log(1 + math.e / z) - math.log(1 + 0.5 / z)
    advantages, _ = divergence(episodes(log_ratio=log_ratio), 0.9, 0.9, kind="js", beta=1.0)
    assert torch.allclose(advantages[0], torch.tensor([js, js]), atol=1e-6)
    # At t = 1, where policy and target agree: f' is 1 (reverse), -1 (forward), 0 and 0.
    at_one = {kind: float(f(torch.zeros(()))) for kind, f in DERIVATIVES.items()}
    assert at_one == pytest.approx({"reverse": 1.0, "forward": -1.0, "js": 0.0, "tv": 0.0}, abs=1e-6)


def test_divergence_of_scores_far_apart_stays_finite() -> None:
    log_ratio = torch.tensor([-900.0, 900.0, 0.0, 1e4])
    for kind in DERIVATIVES:
        assert divergence(episodes(log_ratio=log_ratio), 1.0, 1.0, kind=kind)[0].isfinite().all()


def test_none_is_zero() -> None:
    assert not none(episodes(), 0.9, 0.9)[0].any()
