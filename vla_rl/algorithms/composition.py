"""An objective is a composition: advantage x ratio level x clip x token weights x regularisers x auxiliary terms.

`OBJECTIVES` writes each one in the words of the configuration section `objective`, whose other keys override it. Nothing
else in the code knows an objective by its name: it asks what the parts need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vla_rl.algorithms.auxiliaries import AUXILIARIES
from vla_rl.algorithms.estimators import ESTIMATORS
from vla_rl.algorithms.parts import Part, Term, make_term
from vla_rl.algorithms.regularisers import REGULARISERS
from vla_rl.algorithms.token_weights import TOKEN_WEIGHTS
from vla_rl.config import Chosen, ConfigError, ObjectiveConfig, RlConfig, Setting

_GRPO = ObjectiveConfig(advantage="group", ratio="token", average="trajectories", clip_low=0.2, clip_high=0.28)

OBJECTIVES: dict[str, ObjectiveConfig] = {
    # VLA-RL (arXiv 2505.18719)
    "ppo": ObjectiveConfig(
        advantage="critic", ratio="action", average="all", clip_low=0.2, clip_high=0.2, auxiliaries={"value": 1.0}
    ),
    # SimpleVLA-RL (arXiv 2509.09674)
    "grpo": _GRPO,
    # Dr. GRPO (arXiv 2503.20783): no division by the group's deviation, nor by a trajectory's length
    "dr_grpo": _GRPO.model_copy(update={"advantage": {"name": "group", "deviation": False}, "average": "all", "clip_high": 0.2}),
    # DAPO (arXiv 2503.14476), with rl.sampling_attempts for its dynamic sampling
    "dapo": _GRPO.model_copy(update={"average": "all"}),
    # GSPO (arXiv 2507.18071)
    "gspo": _GRPO.model_copy(update={"ratio": "trajectory", "clip_low": 3e-4, "clip_high": 4e-4}),
    # RLOO (arXiv 2402.14740)
    "rloo": _GRPO.model_copy(update={"advantage": "others", "clip_high": 0.2}),
    # REINFORCE++ (arXiv 2501.03262)
    "reinforce_pp": _GRPO.model_copy(update={"advantage": "batch", "average": "all", "clip_high": 0.2}),
    # Lite PPO (arXiv 2508.08221)
    "lite_ppo": _GRPO.model_copy(update={"advantage": "group_and_batch", "average": "all", "clip_high": 0.2}),
    # Positive and negative sample reinforcement, W-REINFORCE (arXiv 2506.01347)
    "psr": _GRPO.model_copy(update={"advantage": {"name": "reinforcement", "negative": 0.0}, "average": "all", "clip_high": 0.2}),
    "nsr": _GRPO.model_copy(update={"advantage": {"name": "reinforcement", "positive": 0.0}, "average": "all", "clip_high": 0.2}),
    "w_reinforce": _GRPO.model_copy(
        update={"advantage": {"name": "reinforcement", "positive": 0.1}, "average": "all", "clip_high": 0.2}
    ),
    # ACE (arXiv 2602.21420)
    "ace": _GRPO.model_copy(update={"token_weights": {"confident_errors": 1.0}}),
    # Lp-Reg (arXiv 2510.03222): the ratio is clipped to [0, 10] only
    "lp_reg": _GRPO.model_copy(
        update={"average": "all", "clip_low": 1.0, "clip_high": 9.0, "regularisers": {"low_probability": 1.0}}
    ),
    # ProRL (arXiv 2505.24864)
    "prorl": _GRPO.model_copy(
        update={"average": "all", "clip_high": 0.4, "regularisers": {"reference": 1e-3}, "reference_reset_every": 10}
    ),
    # RAPO (arXiv 2510.03865)
    "rapo": _GRPO.model_copy(
        update={"regularisers": {"reference": {"coefficient": 1e-2, "kind": "forward", "success_temperature": 1.0}}}
    ),
    # f-DPG (arXiv 2302.08215)
    "f_dpg": _GRPO.model_copy(update={"advantage": "divergence", "clip_high": 0.2}),
    # RPO's SFT regulariser (arXiv 2405.16436) beside GRPO
    "rpo": _GRPO.model_copy(update={"auxiliaries": {"imitation": 0.05}}),
    # RL-PLUS (arXiv 2508.00222)
    "rl_plus": _GRPO.model_copy(
        update={
            "advantage": {"name": "group", "deviation": False},
            "average": "all",
            "clip_low": math.inf,
            "clip_high": math.inf,
            "regularisers": {"entropy": 1e-3},
            "auxiliaries": {"hybrid": 0.125},
        }
    ),
    # PACS (arXiv 2509.02522)
    "pacs": _GRPO.model_copy(update={"advantage": "none", "auxiliaries": {"outcome": 1.0}}),
}


@dataclass(frozen=True)
class Objective:
    """A composition with all its parts resolved. Build one with `compose`."""

    name: str
    advantage: Term
    ratio: Literal["token", "action", "trajectory"]
    average: Literal["all", "trajectories"]
    clip_low: float
    clip_high: float
    dual_clip: float | None
    token_weights: tuple[Term, ...]
    regularisers: tuple[Term, ...]
    auxiliaries: tuple[Term, ...]
    demonstration_share: float
    reference_reset_every: int

    def needs(self, need: str) -> bool:
        """Whether any part needs this; one of `parts.NEEDS`."""
        if need == "trajectories" and (self.average == "trajectories" or self.ratio == "trajectory"):
            return True
        terms = (self.advantage, *self.token_weights, *self.regularisers, *self.auxiliaries)
        return any(need in term.part.needs for term in terms)

    def auxiliaries_on(self, need: str) -> tuple[Term, ...]:
        """The auxiliary terms that act on values (critic), demonstrations or trajectories."""
        return tuple(term for term in self.auxiliaries if need in term.part.needs)

    @property
    def looks_at_trajectories(self) -> bool:
        """Whether the loss is a function of whole trajectories' log-probs, and not of single tokens' or actions' alone."""
        return self.ratio == "trajectory" or bool(self.auxiliaries_on("trajectories"))

    @property
    def unit(self) -> Literal["turn", "trajectory", "group"]:
        """What a mini-batch may not cut in two."""
        if any("groups" in term.part.needs for term in self.auxiliaries):
            return "group"
        return "trajectory" if self.needs("trajectories") else "turn"


def compose(config: ObjectiveConfig) -> Objective:
    """The named composition with its overrides. Raises `ConfigError`, in one line, for what does not exist or fit."""
    if config.name not in OBJECTIVES:
        raise ConfigError(f"objective.name is {config.name!r}; choose one of {', '.join(OBJECTIVES)}")
    base = OBJECTIVES[config.name]
    settings = _named(base.advantage)
    if config.advantage is not None:
        settings = _named(config.advantage) if "name" in _named(config.advantage) else settings | _named(config.advantage)
    if "coefficient" in settings:
        raise ConfigError("objective.advantage has no coefficient: give the regularisers and auxiliary terms other ones instead")
    objective = Objective(
        name=config.name,
        advantage=make_term("advantage", ESTIMATORS, str(settings.pop("name", "")), settings),
        ratio=config.ratio or base.ratio or "action",
        average=config.average or base.average or "all",
        clip_low=config.clip_low or base.clip_low or math.inf,
        clip_high=config.clip_high or base.clip_high or math.inf,
        dual_clip=config.dual_clip or base.dual_clip,
        token_weights=_merge("token weight", TOKEN_WEIGHTS, base.token_weights, config.token_weights),
        regularisers=_merge("regulariser", REGULARISERS, base.regularisers, config.regularisers),
        auxiliaries=_merge("auxiliary term", AUXILIARIES, base.auxiliaries, config.auxiliaries),
        demonstration_share=config.demonstration_share or base.demonstration_share or 0.125,
        reference_reset_every=_first(config.reference_reset_every, base.reference_reset_every, 0),
    )
    if ("critic" in objective.advantage.part.needs) != bool(objective.auxiliaries_on("critic")):
        raise ConfigError("the advantage `critic` and the auxiliary term `value` need each other; choose both or neither")
    if objective.ratio == "trajectory" and objective.average == "all":
        raise ConfigError(
            "objective.ratio=trajectory has one term a trajectory and nothing for objective.average=all to average; "
            "set objective.average=trajectories"
        )
    if objective.reference_reset_every and not objective.needs("reference"):
        raise ConfigError(
            "objective.reference_reset_every resets a reference, and no part compares with one; add the regulariser `reference`, "
            "or set objective.reference_reset_every=0"
        )
    return objective


def check_rounds(config: RlConfig, objective: Objective) -> None:
    """Raise `ConfigError` where rounds of `config` do not bring what the objective needs."""
    if objective.needs("groups") and config.group_size < 2:
        raise ConfigError(
            f"objective {objective.name} compares episodes that share an initial state, and rl.group_size is "
            f"{config.group_size}; set rl.group_size=8"
        )
    if config.episodes_per_iteration % config.group_size:
        raise ConfigError(
            f"rl.episodes_per_iteration is {config.episodes_per_iteration}, which is no multiple of "
            f"rl.group_size={config.group_size}"
        )
    if config.sampling_attempts and config.group_size < 2:
        raise ConfigError("rl.sampling_attempts chooses among groups; set rl.group_size=8, or rl.sampling_attempts=0")
    if config.success_low > config.success_high:
        raise ConfigError(f"rl.success_low={config.success_low} is above rl.success_high={config.success_high}")


def _merge(kind: str, parts: Mapping[str, Part], base: Chosen, override: Chosen) -> tuple[Term, ...]:
    """Terms of both; an override changes the settings that it names."""
    merged: dict[str, dict[str, Setting]] = {}
    for name, chosen in (*base.items(), *override.items()):
        merged[name] = merged.get(name, {}) | (chosen if isinstance(chosen, dict) else {"coefficient": chosen})
    terms = [make_term(kind, parts, name, settings) for name, settings in merged.items()]
    return tuple(term for term in terms if term.coefficient != 0)


def _named(advantage: str | dict[str, Setting] | None) -> dict[str, Setting]:
    return {"name": advantage} if isinstance(advantage, str) else dict(advantage or {})


def _first(*values: int | None) -> int:
    return next((value for value in values if value is not None), 0)
