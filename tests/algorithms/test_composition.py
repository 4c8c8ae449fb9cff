"""Compositions: what overrides do, what their parts need, and what a wrong one says."""

from pathlib import Path

import pytest

from vla_rl.algorithms.auxiliaries import AUXILIARIES
from vla_rl.algorithms.composition import OBJECTIVES, check_rounds, compose
from vla_rl.algorithms.estimators import ESTIMATORS
from vla_rl.algorithms.regularisers import REGULARISERS
from vla_rl.algorithms.token_weights import TOKEN_WEIGHTS
from vla_rl.config import Config, ConfigError, ObjectiveConfig, RlConfig
from vla_rl.config_files import load_config
from vla_rl.control_config import load_experiment

ROOT = Path(__file__).parents[2]


def test_grpo_is_that_of_simplevla_rl() -> None:
    grpo = compose(ObjectiveConfig(name="grpo"))
    assert (grpo.ratio, grpo.average, grpo.clip_low, grpo.clip_high, grpo.dual_clip) == ("token", "trajectories", 0.2, 0.28, None)
    assert grpo.advantage.settings == {"deviation": True}
    assert not (grpo.regularisers or grpo.auxiliaries or grpo.token_weights)
    assert grpo.needs("groups") and not any(grpo.needs(need) for need in ("critic", "reference", "demonstrations"))
    assert grpo.unit == "trajectory"


def test_ppo_is_that_of_vla_rl() -> None:
    ppo = compose(ObjectiveConfig())
    assert (ppo.name, ppo.ratio, ppo.average, ppo.clip_low, ppo.clip_high) == ("ppo", "action", "all", 0.2, 0.2)
    assert ppo.needs("critic") and not ppo.needs("groups") and ppo.unit == "turn"
    assert [(term.name, term.coefficient) for term in ppo.auxiliaries] == [("value", 1.0)]


def test_overrides_change_single_parts() -> None:
    objective = compose(
        ObjectiveConfig(
            name="w_reinforce",
            advantage={"positive": 0.3},
            ratio="action",
            clip_high=0.4,
            dual_clip=3.0,
            regularisers={"entropy": 0.01, "reference": {"coefficient": 0.1, "kind": "js"}},
            reference_reset_every=4,
        )
    )
    assert objective.advantage.name == "reinforcement" and objective.advantage.settings == {"positive": 0.3, "negative": 1.0}
    assert (objective.ratio, objective.clip_low, objective.clip_high, objective.dual_clip) == ("action", 0.2, 0.4, 3.0)
    assert objective.needs("reference") and objective.reference_reset_every == 4
    other = compose(ObjectiveConfig(name="w_reinforce", advantage="others"))
    assert other.advantage.name == "others" and other.advantage.settings == {}


def test_a_coefficient_of_zero_removes_a_part_and_a_setting_keeps_the_others() -> None:
    assert not compose(ObjectiveConfig(name="rapo", regularisers={"reference": 0})).needs("reference")
    (term,) = compose(ObjectiveConfig(name="rapo", regularisers={"reference": {"kind": "tv"}})).regularisers
    assert term.coefficient == 1e-2 and term.settings == {"kind": "tv", "success_temperature": 1.0}


def test_overrides_can_come_from_the_command_line() -> None:
    config = load_config(
        None,
        ["objective.name=prorl", "objective.regularisers.entropy=1e-3", "objective.clip_low=.inf", "objective.advantage=others"],
    )
    objective = compose(config.objective)
    assert {term.name: term.coefficient for term in objective.regularisers} == {"reference": 1e-3, "entropy": 1e-3}
    assert objective.clip_low == float("inf") and objective.advantage.name == "others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gpro"}, "objective.name is 'gpro'; choose one of ppo, grpo"),
        ({"advantage": "groups"}, "there is no advantage 'groups'; choose from critic, group"),
        ({"name": "grpo", "advantage": {"deviations": False}}, "has no setting 'deviations'"),
        ({"regularisers": {"kl": 1.0}}, "there is no regulariser 'kl'"),
        ({"regularisers": {"reference": {"kind": "kl"}}}, "is 'kl'; choose one of reverse, forward, js, tv"),
        ({"auxiliaries": {"value": 0.0}}, "need each other"),
        ({"reference_reset_every": 3}, "no part compares with one"),
        ({"name": "grpo", "auxiliaries": {"value": 1.0}}, "need each other"),
        ({"name": "grpo", "advantage": {"coefficient": 0.5}}, "objective.advantage has no coefficient"),
        ({"name": "gspo", "average": "all"}, "set objective.average=trajectories"),
        (
            {"name": "f_dpg", "advantage": {"beta": 0}},
            "'beta' of the advantage 'divergence' is 0.0; give a number from 1e-06",
        ),
        ({"regularisers": {"low_probability": {"kept": -0.1}}}, "give a number from 0 to 1"),
        ({"regularisers": {"low_probability": {"share": float("nan")}}}, "is nan; give a number from 0 to 1"),
        ({"regularisers": {"reference": {"success_temperature": -1}}}, "give a number from 0 to inf"),
        ({"regularisers": {"entropy": float("inf")}}, "is inf; give a number"),
    ],
)
def test_a_wrong_composition_is_one_clear_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]*$") as caught:
        compose(ObjectiveConfig(**changes))  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {}, "set rl.group_size=8"),
        ("ppo", {"sampling_attempts": 3}, "rl.sampling_attempts chooses among groups"),
        ("grpo", {"group_size": 7}, "no multiple of rl.group_size=7"),
        ("grpo", {"group_size": 8, "success_low": 0.6, "success_high": 0.5}, "is above"),
    ],
)
def test_rounds_that_do_not_fit_are_one_clear_line(name: str, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]*$") as caught:
        check_rounds(RlConfig(**changes), compose(ObjectiveConfig(name=name)))  # type: ignore[arg-type]
    assert message in str(caught.value)


POLICY_CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if isinstance(load_experiment(path), Config)]


@pytest.mark.parametrize("path", POLICY_CONFIGS, ids=lambda path: path.name)
def test_the_objective_of_every_shipped_config_composes(path: Path) -> None:
    config = load_config(path)
    check_rounds(config.rl, compose(config.objective))


def test_the_document_lists_every_objective_and_every_part() -> None:
    text = (ROOT / "docs" / "objectives.md").read_text()
    for name in (*OBJECTIVES, *ESTIMATORS, *REGULARISERS, *TOKEN_WEIGHTS, *AUXILIARIES):
        assert f"`{name}`" in text, f"docs/objectives.md does not mention {name}"


def test_no_other_module_knows_an_objective_by_name() -> None:
    """An objective's name outside the dict would be a branch on it."""
    for path in (ROOT / "vla_rl").rglob("*.py"):
        if path.name in ("composition.py", "config.py"):
            continue
        text = path.read_text()
        for name in OBJECTIVES:
            assert f'"{name}"' not in text, f"{path} names {name}"
