"""Regularisers, token weights and auxiliary terms, against numbers worked out by hand.

Two classes or three, one turn of one token unless a test says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_rl.algorithms.auxiliaries import hybrid, imitation, outcome
from vla_rl.algorithms.learner import penalised_rank, task_success
from vla_rl.algorithms.parts import Part, Tokens, Trajectories, make_term
from vla_rl.algorithms.regularisers import entropy, low_probability, reference
from vla_rl.algorithms.token_weights import confident_errors
from vla_rl.algorithms.turn_batch import TurnBatch
from vla_rl.config import ConfigError
from vla_rl.types import Observation

NAN = float("nan")


def tokens(probabilities: list[list[float]], drawn: list[int], **changes: Tensor) -> Tokens:
    """One token a turn, drawn from the distributions given."""
    distribution = torch.tensor(probabilities).log()[:, None]
    classes = torch.tensor(drawn)[:, None]
    log_probs = distribution.gather(-1, classes[..., None]).squeeze(-1)
    turns = len(drawn)
    record = {
        "log_probs": log_probs,
        "distribution": distribution,
        "behaviour_log_probs": log_probs,
        "classes": classes,
        "advantages": torch.ones(turns),
        "success": torch.ones(turns, dtype=torch.bool),
        "weights": torch.ones(turns, 1),
    }
    return Tokens.clean(torch.ones(turns, 1, dtype=torch.bool), **record | changes)


def test_the_entropy_bonus_is_a_negative_cost() -> None:
    # -(.25 ln .25 + .75 ln .75), with the sign of a cost.
    expected = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    assert entropy(tokens([[0.25, 0.75]], [0])).item() == pytest.approx(expected)


def test_the_reference_is_compared_exactly_and_failures_less() -> None:
    # Reverse: .5 ln 2 + .5 ln(2/3). Forward: .25 ln(1/2) + .75 ln(3/2). A failure's cost times exp(-1/tau), tau 2.
    reverse = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    theirs = torch.tensor([[[0.25, 0.75]]] * 2).log()
    seen = tokens([[0.5, 0.5]] * 2, [0, 1], reference=theirs, success=torch.tensor([True, False]))
    assert reference(seen).flatten().tolist() == pytest.approx([reverse, reverse])
    cost = reference(seen, kind="forward", success_temperature=2.0)
    assert cost.flatten().tolist() == pytest.approx([forward, forward * math.exp(-0.5)])


def test_low_probability_tokens_are_held_at_the_proxy() -> None:
    # Before the update (.01, .09, .9), kept: probabilities from .02 * .9 = .018, so the first class is noise and the proxy is
    # (0, .1, 10/11 * ...) = (0, .0909.., .909..). Class 1 has now probability .05: log ratio ln(.090909 / .05) = ln(20/11),
    # k3 = 20/11 - 1 - ln(20/11). At .2 it has more than the proxy: 0. The noise class: 0. A rank of .5 is too high: 0.
    before = torch.tensor([[[0.01, 0.09, 0.9]]] * 4).log()
    now = [[0.01, 0.05, 0.94], [0.01, 0.2, 0.79], [0.001, 0.05, 0.949], [0.01, 0.05, 0.94]]
    seen = tokens(now, [1, 1, 0, 1], before=before, rank=torch.tensor([[0.0], [0.0], [0.0], [0.5]]))
    seen.log_probs.requires_grad_()
    cost = low_probability(seen, kept=0.02, share=0.5)
    assert cost.flatten().tolist() == pytest.approx([20 / 11 - 1 - math.log(20 / 11), 0, 0, 0], abs=1e-6)
    cost.sum().backward()
    # d k3 / d log p = 1 - q/p = 1 - 20/11.
    assert seen.log_probs.grad is not None
    assert seen.log_probs.grad.flatten().tolist() == pytest.approx([-9 / 11, 0, 0, 0], abs=1e-5)


def turns(**changes: Tensor) -> TurnBatch:
    """Three turns of one action of two tokens, of two trajectories."""
    record = TurnBatch(
        observation=Observation({}, np.zeros((3, 1), np.float32), ["a", "a", "b"]),
        tokens=np.zeros((3, 2), np.int64),
        log_probs=torch.tensor([[-1.0, -2.0], [-3.0, NAN], [-4.0, -5.0]]),
        values=torch.zeros(3),
        version=torch.zeros(3, dtype=torch.long),
        trajectory=torch.tensor([0, 0, 1]),
        group=torch.tensor([0, 0, 0]),
        success=torch.tensor([True, True, False]),
        executed=torch.tensor([[True], [True], [True]]),
        advantages=torch.tensor([-1.0, 2.0, -1.0]),
    )
    return replace(record, **changes)


def test_the_rank_is_among_penalised_tokens() -> None:
    # Turns 0 and 2 are penalised: log-probs -5 < -4 < -2 < -1. The second turn has a positive advantage.
    assert penalised_rank(turns()).tolist() == [[0.75, 0.5], [1.0, 1.0], [0.25, 0.0]]
    gone = turns(executed=torch.tensor([[False], [True], [True]]))
    assert penalised_rank(gone).tolist() == [[1.0, 1.0], [1.0, 1.0], [0.5, 0.0]]


def test_confident_errors_weigh_more() -> None:
    # c = ln(e - 1): softplus(c) = 1, so 1 + 2 * 1 = 3; a positive advantage keeps 1; c = 9 is bounded at ln(e - 1), or at 0:
    # 1 + 2 ln 2.
    shift = torch.tensor([math.log(math.e - 1), 5.0, 9.0])
    weights = confident_errors(turns(log_ratio=shift), 2.0, max_shift=math.log(math.e - 1))
    assert torch.allclose(weights, torch.tensor([[3.0, 3.0], [1.0, 1.0], [3.0, 3.0]]))
    assert confident_errors(turns(log_ratio=shift), 2.0, max_shift=0.0)[2, 0].item() == pytest.approx(1 + 2 * math.log(2))


def test_the_success_of_a_task_counts_trajectories() -> None:
    # Task a: one trajectory of two turns, which succeeded. Task b: one that failed. No c: the mean of both.
    assert task_success(turns(), ["b", "a", "c"]).tolist() == [0.0, 1.0, 0.5]


def test_imitation_is_the_negative_log_likelihood() -> None:
    assert imitation(tokens([[0.25, 0.75]], [0])).item() == pytest.approx(math.log(4))


def test_the_hybrid_term_by_hand() -> None:
    # pi = .36, old .2, advantage .5. Demonstrator (.2 + 1)/2 = .6: r = 2 * .36 / .8 = .9. (1 - .36)^.5 = .8.
    # Cost -.9 * .5 * .8 = -.36; its gradient with respect to log pi is the same, as r is linear in pi.
    seen = tokens([[0.36, 0.64]], [0], behaviour_log_probs=torch.tensor([[0.2]]).log(), advantages=torch.tensor([0.5]))
    seen.log_probs.requires_grad_()
    cost = hybrid(seen)
    assert cost.item() == pytest.approx(-0.36)
    cost.backward()
    assert seen.log_probs.grad is not None and seen.log_probs.grad.item() == pytest.approx(-0.36)


def test_the_outcome_term_by_hand() -> None:
    # One group of three, scores (2, 0, 1), outcomes (1, 0, 0). Logits: 2 - .5 = 1.5, 0 - 1.5 = -1.5, 1 - 1 = 0.
    # Balanced weights: 3 / (2 * 1) = 1.5 for the success, 3 / (2 * 2) = .75 for the failures.
    # Cross-entropy: ln(1 + e^-1.5) twice and ln 2. A second group of two failures: weight 1, logits +-1.
    soft = math.log(1 + math.exp(-1.5))
    whole = Trajectories(
        log_ratio=torch.tensor([2.0, 0.0, 1.0, 0.5, -0.5]),
        tokens=torch.full((5,), 7.0),
        advantages=torch.zeros(5),
        success=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]),
        groups=torch.tensor([3, 3, 3, 1, 1]),
    )
    expected = [1.5 * soft, 0.75 * soft, 0.75 * math.log(2), math.log(1 + math.e), math.log(1 + math.exp(-1))]
    assert outcome(whole).tolist() == pytest.approx(expected, rel=1e-5)
    assert outcome(whole, balance=False)[0].item() == pytest.approx(soft, rel=1e-5)
    # With beta 2 every logit doubles.
    assert outcome(whole, beta=2.0, balance=False)[0].item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-4)


def test_what_lies_outside_the_mask_is_replaced() -> None:
    leaf = torch.full((2, 3), NAN, requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    seen = Tokens.clean(
        mask,
        log_probs=torch.where(mask, -1.0, leaf),
        distribution=torch.full((2, 3, 4), NAN),
        behaviour_log_probs=torch.full((2, 3), NAN),
        classes=torch.full((2, 3), -100),
        advantages=torch.tensor([1.0, NAN]),
        success=torch.tensor([True, True]),
        weights=torch.full((2, 3), NAN),
    )
    assert seen.log_probs.tolist() == [[-1.0, 0, 0], [0, 0, 0]] and seen.advantages.tolist() == [1, 0]
    assert seen.classes[1].tolist() == [0, 0, 0] and seen.success.tolist() == [True, False]
    assert seen.distribution[0, 1].tolist() == pytest.approx([math.log(0.25)] * 4)
    seen.log_probs.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()


def scaled(values: Tensor, *, factor: float = 2.0, kind: str = "a", doubled: bool = False) -> Tensor:
    return values * factor


def test_a_term_takes_a_number_or_settings() -> None:
    parts = {"scaled": Part(scaled)}
    assert make_term("thing", parts, "scaled", 0.5).coefficient == 0.5
    term = make_term("thing", parts, "scaled", {"coefficient": 3, "factor": 4})
    assert term.coefficient == 3 and term(torch.ones(1)).item() == 4


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("scald", 1.0, "there is no thing 'scald'; choose from scaled"),
        ("scaled", {"facto": 1.0}, "has no setting 'facto'; it has coefficient, factor, kind, doubled"),
        ("scaled", {"factor": "two"}, "'factor' of the thing 'scaled' is 'two'; give a value like 2.0"),
        ("scaled", {"factor": True}, "give a value like 2.0"),
        ("scaled", {"kind": 3}, "give a value like 'a'"),
        ("scaled", {"doubled": 1}, "give a value like False"),
        ("scaled", {"coefficient": "much"}, "give a number"),
        ("scaled", {"coefficient": "nan"}, "give a number"),
        ("scaled", {"factor": "1e3"}, "'factor' of the thing 'scaled' is 1000.0; give a number from 0 to 10"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(name: str, chosen: object, message: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]*$") as caught:
        make_term("thing", {"scaled": Part(scaled, ranges={"factor": (0, 10)})}, name, chosen)  # type: ignore[arg-type]
    assert message in str(caught.value)
