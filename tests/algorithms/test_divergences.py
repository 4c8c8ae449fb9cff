"""Divergences of two distributions, against numbers worked out by hand and each other's definition."""

import math

import pytest
import torch

from vla_rl.algorithms.divergences import DERIVATIVES, DIVERGENCES

P, Q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])


def test_divergences_by_hand() -> None:
    # KL(p||q) = .5 ln 2 + .5 ln(2/3);  KL(q||p) = .25 ln(1/2) + .75 ln(3/2).
    # m = (.375, .625): KL(p||m) + KL(q||m);  TV = (.25 + .25) / 2.
    expected = {
        "reverse": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        "forward": 0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        "js": 0.5 * math.log(0.5 / 0.375)
        + 0.5 * math.log(0.5 / 0.625)
        + 0.25 * math.log(0.25 / 0.375)
        + 0.75 * math.log(0.75 / 0.625),
        "tv": 0.25,
    }
    found = {kind: float(divergence(P.log(), Q.log())) for kind, divergence in DIVERGENCES.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert {kind: float(divergence(P.log(), P.log())) for kind, divergence in DIVERGENCES.items()} == pytest.approx(
        dict.fromkeys(DIVERGENCES, 0.0), abs=1e-7
    )


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_the_gradient_of_a_divergence_is_the_expectation_of_f_prime(kind: str) -> None:
    """d D_f / d theta = E_p[f'(p/q) d log p / d theta] (arXiv 2302.08215, theorem 1)."""
    logits = torch.tensor([0.3, -0.2, 1.0, -1.5], dtype=torch.float64).requires_grad_()
    q = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    p = logits.log_softmax(-1)
    (direct,) = torch.autograd.grad(DIVERGENCES[kind](p, q), logits, retain_graph=True)
    weighted = (p.exp().detach() * DERIVATIVES[kind]((p - q).detach()) * p).sum()
    (expected,) = torch.autograd.grad(weighted, logits)
    assert torch.allclose(direct, expected, atol=1e-9)
