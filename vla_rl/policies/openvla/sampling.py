"""How tokens are drawn from logits, and which observations of a batch are the same.

Legend: B observations, M of them distinct, L action tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.policies.base import Generators, PolicyError
from vla_rl.types import Observation


def sample(
    logits: Float[Tensor, "B L 256"], temperature: float, generator: Generators
) -> tuple[Int64[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Classes and their log-probs, by inverting the cumulative distribution at one uniform number a token."""
    return draw(logits, temperature, uniform_numbers(logits.shape[0], logits.shape[1], generator) if temperature else None)


def draw(
    logits: Float[Tensor, "B L 256"], temperature: float, uniform: Float[Tensor, "B L"] | None
) -> tuple[Int64[Tensor, "B L"], Float[Tensor, "B L"]]:
    """`sample` from given numbers in [0, 1); None where the temperature is 0."""
    if temperature < 0:
        raise PolicyError(f"a temperature is at least 0, not {temperature}")
    if temperature == 0:
        classes = logits.argmax(-1)
        return classes, logits.new_zeros(classes.shape)
    assert uniform is not None
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    uniform = uniform.to(logits.device)
    cumulative = log_p.double().exp().cumsum(-1)
    # Scaling by the total keeps the last class reachable and every class within bounds when the sum is not exactly 1.
    threshold = uniform[..., None] * cumulative[..., -1:]
    classes = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    return classes.squeeze(-1), log_p.gather(-1, classes).squeeze(-1)


def uniform_numbers(batch: int, tokens: int, generator: Generators) -> Float[Tensor, "B L"]:
    """In [0, 1), float64."""
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise PolicyError(f"{len(generator)} generators for {batch} observations")
        return torch.stack([uniform_numbers(1, tokens, g)[0].cpu() for g in generator])
    device = generator.device if generator is not None else "cpu"
    return torch.rand((batch, tokens), generator=generator, device=device, dtype=torch.float64)


def distinct_rows(observation: Observation) -> tuple[Int64[np.ndarray, "M"], Int64[np.ndarray, "B"]]:
    """Rows that differ from all before them, and which of those each row equals: siblings share their first observation."""
    batch = len(observation.instruction)
    keys = [(text, row.tobytes()) for text, row in zip(observation.instruction, observation.proprio, strict=True)]
    if len(set(keys)) == batch:
        return np.arange(batch), np.arange(batch)
    frames = [np.asarray(observation.images[name]) for name in sorted(observation.images)]
    seen: dict[Any, int] = {}
    rows = [seen.setdefault((*key, *(f[i].tobytes() for f in frames)), len(seen)) for i, key in enumerate(keys)]
    return np.unique(rows, return_index=True)[1], np.array(rows)
