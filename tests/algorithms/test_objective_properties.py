"""What must not change a gradient, for every objective of the dict: splitting, order, padding, names of trajectories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bandit import Demonstrations, LinearPolicy, play

from vla_rl.algorithms.composition import OBJECTIVES, compose
from vla_rl.algorithms.estimators import ESTIMATORS
from vla_rl.algorithms.learner import RlLearner
from vla_rl.algorithms.mini_batch import accumulate_gradient
from vla_rl.algorithms.turn_batch import Episodes, TurnBatch
from vla_rl.config import ObjectiveConfig, RlConfig
from vla_rl.distributed.ranks import Ranks
from vla_rl.types import Observation

NAN = float("nan")
EXTRA = {"dual_clip": 2.0, "regularisers": {"entropy": 0.1}}
"""Parts that no composition uses are added to one, so that they are tested as well."""
CASES = {name: {} for name in OBJECTIVES} | {
    "grpo with extras": EXTRA,
    "ppo by trajectories": {"average": "trajectories", "regularisers": {"reference": {"coefficient": 0.1, "kind": "js"}}},
    "lp_reg of many": {"regularisers": {"low_probability": {"share": 0.5}}},
    "gspo with weights": {"token_weights": {"confident_errors": 1.0}, "regularisers": {"reference": {"kind": "tv"}}},
}


def prepared(name: str, seed: int) -> tuple[LinearPolicy, RlLearner, TurnBatch, TurnBatch | None]:
    """A learner whose policy has moved away from the one that acted, and a prepared round."""
    policy = LinearPolicy(seed, scale=1.0)
    objective = compose(ObjectiveConfig(name=name.split()[0], **CASES[name]))
    learner = RlLearner(policy, RlConfig(temperature=1.3, group_size=4), objective, Demonstrations())
    with torch.no_grad():
        policy.weight += 0.3 * torch.randn(policy.weight.shape, generator=torch.Generator().manual_seed(seed))
    turns = learner.prepare(play(policy, groups=4, size=4, seed=seed, temperature=1.3))
    shown = learner._demonstrated(turns, np.random.default_rng(seed))
    with torch.no_grad():
        policy.weight += 0.3 * torch.randn(policy.weight.shape, generator=torch.Generator().manual_seed(seed + 1))
        policy.critic += 0.5
    return policy, learner, turns, shown


def gradient(policy: LinearPolicy, learner: RlLearner, turns: TurnBatch, shown: TurnBatch | None, micro: int) -> torch.Tensor:
    policy.zero_grad()
    config = learner.config.model_copy(update={"microbatch_turns": micro})
    accumulate_gradient(policy, config, learner.objective, turns, shown, train_policy=True, ranks=Ranks())
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in policy.parameters()])


def padded(turns: TurnBatch, rows: int) -> TurnBatch:
    """`rows` more turns of nothing but garbage, and garbage in every action that was not executed."""
    gone = ~turns.executed.repeat_interleave(2, dim=1)
    changed: dict[str, object] = {}
    for name, value in vars(turns).items():
        if name in ("observation", "tokens", "trajectory", "group", "success", "executed", "version") or value is None:
            continue
        hole = gone[..., None].expand(value.shape) if value.dim() == 3 else gone if value.dim() == 2 else None
        poisoned = value if hole is None else torch.where(hole, NAN, value)
        changed[name] = torch.cat([poisoned, torch.full((rows, *value.shape[1:]), NAN)])
    proprio = turns.observation.proprio
    observation = Observation(
        {},
        np.concatenate([proprio, 7 * np.ones((rows, proprio.shape[1]), np.float32)]),
        turns.observation.instruction + ["?"] * rows,
    )
    return replace(
        turns,
        **changed,
        observation=observation,
        tokens=np.concatenate([np.where(gone.numpy(), 1, turns.tokens), np.ones((rows, 4), np.int64)]),
        trajectory=torch.cat([turns.trajectory, 1000 + torch.arange(rows)]),
        group=torch.cat([turns.group, turns.group[:rows]]),
        success=torch.cat([turns.success, torch.ones(rows, dtype=torch.bool)]),
        executed=torch.cat([turns.executed, torch.zeros(rows, 2, dtype=torch.bool)]),
        version=torch.cat([turns.version, torch.zeros(rows, dtype=torch.long)]),
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_nothing_but_the_turns_themselves_decides_the_gradient(name: str, seed: int) -> None:
    policy, learner, turns, shown = prepared(name, seed)
    expected = gradient(policy, learner, turns, shown, micro=1000)
    assert expected.abs().max() > 1e-4

    def check(turns: TurnBatch, shown: TurnBatch | None, micro: int) -> None:
        torch.testing.assert_close(gradient(policy, learner, turns, shown, micro), expected, rtol=1e-3, atol=1e-6)

    rng = np.random.default_rng(seed)
    for micro in (1, 3, 7):
        check(turns, shown, micro)
    order = rng.permutation(len(turns))
    check(turns.select(order), None if shown is None else shown.select(rng.permutation(len(shown))), 5)
    check(padded(turns, 6), None if shown is None else padded(shown, 2), 4)
    check(padded(turns, 6).select(rng.permutation(len(turns) + 6)), shown, 1000)
    renamed = replace(turns, trajectory=97 - 3 * turns.trajectory, group=11 - turns.group)
    check(renamed, shown, 5)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_padding_and_order_change_no_advantage(name: str) -> None:
    episodes = play(LinearPolicy(), groups=5, size=4, seed=3).episodes
    count, length = episodes.mask.shape
    draw = torch.Generator().manual_seed(0)
    episodes = replace(episodes, log_ratio=torch.randn(count, generator=draw), values=torch.randn(count, length, generator=draw))
    term = ESTIMATORS[name]
    expected = term.function(episodes, 0.9, 0.8)[0]
    assert (expected[~episodes.mask] == 0).all()

    wide = {k: torch.cat([getattr(episodes, k), torch.full((count, 2), NAN)], 1) for k in ("rewards", "values")}
    for key, value in wide.items():
        value[:, :length][~episodes.mask] = NAN
        wide[key] = value
    longer = replace(episodes, **wide, mask=torch.cat([episodes.mask, torch.zeros(count, 2, dtype=torch.bool)], 1))
    assert torch.allclose(term.function(longer, 0.9, 0.8)[0][:, :length], expected, atol=1e-6)

    order = torch.randperm(count, generator=draw)
    shuffled = Episodes(**{key: value[order] for key, value in vars(episodes).items()})
    shuffled = replace(shuffled, groups=5 - 2 * shuffled.groups)
    assert torch.allclose(term.function(shuffled, 0.9, 0.8)[0], expected[order], atol=1e-6)


def test_the_same_part_is_in_some_case() -> None:
    """Every token weight, regulariser and auxiliary term is part of a case above."""
    from vla_rl.algorithms.auxiliaries import AUXILIARIES
    from vla_rl.algorithms.regularisers import REGULARISERS
    from vla_rl.algorithms.token_weights import TOKEN_WEIGHTS

    used = set()
    for name, overrides in CASES.items():
        objective = compose(ObjectiveConfig(name=name.split()[0], **overrides))
        used |= {t.name for t in (objective.advantage, *objective.token_weights, *objective.regularisers, *objective.auxiliaries)}
    assert {*AUXILIARIES, *REGULARISERS, *TOKEN_WEIGHTS, *ESTIMATORS} <= used
