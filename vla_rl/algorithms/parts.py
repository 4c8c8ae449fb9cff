"""What an objective is put together from: a part is a pure function with settings and a list of what it needs.

Legend: N turns, K trajectories, L = A*D action tokens, V action-token classes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vla_rl.config import ConfigError

NEEDS = ("critic", "groups", "reference", "demonstrations", "before", "rank", "trajectories")
"""critic: values are learned; groups: episodes share initial states; reference: a frozen policy; demonstrations: those of the
run; before: all log-probs before the update; rank: see `TurnBatch.rank`; trajectories: a mini-batch cuts none in two."""


@dataclass(frozen=True)
class Part:
    """A pure function that a configuration can name. Its keyword-only parameters are its settings."""

    function: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    choices: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Setting -> the values that it may have."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Setting -> the lowest and the highest number that it may be."""

    def __post_init__(self) -> None:
        assert self.needs <= set(NEEDS), f"unknown needs: {self.needs - set(NEEDS)}"

    @property
    def settings(self) -> dict[str, Any]:
        """Names and defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True)
class Term:
    """A part as a composition uses it."""

    name: str
    part: Part
    settings: Mapping[str, Any]
    coefficient: float = 1.0

    def __call__(self, *tensors: Any) -> Any:
        return self.part.function(*tensors, **self.settings)


def make_term(kind: str, parts: Mapping[str, Part], name: str, chosen: float | Mapping[str, Any]) -> Term:
    """The part `name` with `chosen` settings; a bare number is its coefficient.

    Raises `ConfigError` for a part or a setting that does not exist, or for a value that a setting cannot have.
    """
    if name not in parts:
        raise ConfigError(f"there is no {kind} {name!r}; choose from {', '.join(parts)}")
    settings = dict(chosen) if isinstance(chosen, Mapping) else {"coefficient": chosen}
    coefficient = settings.pop("coefficient", 1.0)
    known = parts[name].settings
    for key, given in settings.items():
        if key not in known:
            raise ConfigError(f"the {kind} {name!r} has no setting {key!r}; it has {', '.join(('coefficient', *known))}")
        settings[key] = value = _number(given) if isinstance(known[key], float) else given
        if not _is_like(known[key], value):
            raise ConfigError(f"the setting {key!r} of the {kind} {name!r} is {value!r}; give a value like {known[key]!r}")
        if key in parts[name].choices and value not in parts[name].choices[key]:
            allowed = ", ".join(parts[name].choices[key])
            raise ConfigError(f"the setting {key!r} of the {kind} {name!r} is {value!r}; choose one of {allowed}")
        low, high = parts[name].ranges.get(key, (-math.inf, math.inf))
        if isinstance(value, float) and not (low <= value <= high and math.isfinite(value)):
            raise ConfigError(f"the setting {key!r} of the {kind} {name!r} is {value!r}; give a number from {low:g} to {high:g}")
    coefficient = _number(coefficient)
    if not _is_like(1.0, coefficient) or not math.isfinite(coefficient):
        raise ConfigError(f"the coefficient of the {kind} {name!r} is {coefficient!r}; give a number")
    return Term(name, parts[name], known | settings, float(coefficient))


def _number(value: Any) -> Any:
    """As a float where it is a number, or the text that YAML makes of one like 1e-3."""
    if isinstance(value, bool):
        return value
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return value


def _is_like(default: Any, value: Any) -> bool:
    if isinstance(default, bool | str):
        return type(value) is type(default)
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Tokens:
    """The tokens of N turns as the parts of an objective see them.

    Outside of `mask` everything has been replaced by harmless constants, so that garbage there, NaN included, cannot reach
    a loss or a gradient.
    """

    log_probs: Float[Tensor, "N L"]
    """Of the tokens that were drawn or demonstrated, under the policy that learns; with gradient."""
    distribution: Float[Tensor, "N L V"]
    """Log-probs of all classes, with gradient."""
    behaviour_log_probs: Float[Tensor, "N L"]
    """Of the same tokens under the policy that acted; of demonstrations: under the policy before the update."""
    classes: Int64[Tensor, "N L"]
    """Which class each token is."""
    mask: Bool[Tensor, "N L"]
    advantages: Float[Tensor, "N"]
    success: Bool[Tensor, "N"]
    weights: Float[Tensor, "N L"]
    reference: Float[Tensor, "N L V"] | None = None
    before: Float[Tensor, "N L V"] | None = None
    rank: Float[Tensor, "N L"] | None = None

    @staticmethod
    def clean(mask: Bool[Tensor, "N L"], **tensors: Tensor | None) -> Tokens:
        """Build from tensors that may hold anything outside of `mask`; what lies there is cut off from the gradient."""
        turn = mask.any(1)
        kept: dict[str, Tensor | None] = {}
        for name, value in tensors.items():
            if value is None:
                kept[name] = None
            elif value.dim() == 3:
                kept[name] = torch.where(mask[..., None], value, -math.log(value.shape[-1]))
            elif value.dtype == torch.bool:
                kept[name] = value & turn
            else:
                kept[name] = torch.where(mask if value.dim() == 2 else turn, value, 0)
        return Tokens(mask=mask, **kept)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trajectories:
    """K whole trajectories of a mini-batch as the parts that look at trajectories see them."""

    log_ratio: Float[Tensor, "K"]
    """log pi(trajectory) / pi_behaviour(trajectory): the sum over executed tokens, nat; with gradient."""
    tokens: Float[Tensor, "K"]
    """How many tokens were executed."""
    advantages: Float[Tensor, "K"]
    success: Float[Tensor, "K"]
    """1 or 0."""
    groups: Int64[Tensor, "K"]
