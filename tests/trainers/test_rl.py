"""The loop with every objective, on a pendulum: two rounds of each, groups, dynamic sampling, and stopping in between."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pendulum_run import pendulum_sim, train
from safetensors.numpy import load_file

from vla_rl.algorithms.composition import OBJECTIVES, compose
from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config import ObjectiveConfig
from vla_rl.metrics import read_metrics
from vla_rl.rollout import groups
from vla_rl.sim.pool import SimPool

TIMED = ("time/", "speed/")
GROUPS = ("rl.group_size=3", "rl.episodes_per_iteration=6", "rl.warmup_iterations=1")


@pytest.fixture(scope="module")
def sim() -> Iterator[SimPool]:
    with closing(pendulum_sim()) as opened:
        yield opened


def records(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """Every metric that does not measure time."""
    return [
        (record["step"], {k: v for k, v in record["values"].items() if not k.startswith(TIMED)})
        for record in read_metrics(directory)
    ]


def weights(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = latest_checkpoint(directory / "checkpoints" / "rl")
    assert checkpoint is not None
    return load_file(checkpoint / "policy" / "model.safetensors")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_runs(name: str, sim: SimPool, tmp_path: Path) -> None:
    assert train(sim, str(tmp_path), "run", *GROUPS, f"objective.name={name}", "rl.iterations=2") == 2
    (_, first), (_, second) = records(tmp_path / "run")
    assert first["rollout/episodes"] == 6 and first["rollout/groups"] == 2 and second["rollout/total_episodes"] == 12
    assert "policy/gradient_norm" in second and np.isfinite(second["policy/gradient_norm"])
    # What has no critic trains none, and has no warm-up to wait for.
    critic = compose(ObjectiveConfig(name=name)).needs("critic")
    assert ("policy/gradient_norm" in first) == (not critic)
    assert any(key.startswith("value/") for key in first) == critic


@pytest.mark.parametrize(
    "overrides",
    [
        # Where the halves meet, a surplus group waits and the reference is neither the start nor the policy of then; and
        # demonstrations, low-probability tokens and group-wise mini-batches.
        (
            "objective.name=grpo",
            "objective.regularisers={reference: 0.01, low_probability: 1.0}",
            "objective.auxiliaries={hybrid: 0.1, outcome: 0.1}",
            "objective.reference_reset_every=2",
            "rl.sampling_attempts=3",
            "rl.success_low=0",
            "rl.success_high=1",
            "rl.group_size=2",
            "rl.episodes_per_iteration=2",
            "curriculum.name=dump",
        ),
        ("objective.name=gspo", "rl.group_size=3"),
    ],
    ids=["everything", "gspo"],
)
def test_a_run_in_two_halves_is_a_run_in_one(overrides: tuple[str, ...], sim: SimPool, tmp_path: Path) -> None:
    train(sim, str(tmp_path), "whole", *overrides, "rl.iterations=5")
    train(sim, str(tmp_path), "halves", *overrides, "rl.iterations=3")
    train(sim, str(tmp_path), "halves", *overrides, "rl.iterations=5")
    assert records(tmp_path / "halves") == records(tmp_path / "whole")
    for key, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(weights(tmp_path / "halves")[key], value, err_msg=key)


def test_surplus_groups_are_learned_from_in_the_next_round(sim: SimPool, tmp_path: Path) -> None:
    """Four environments have room for two groups of two, where one is asked for: every second round draws nothing."""
    train(
        sim,
        str(tmp_path),
        "run",
        "objective.name=grpo",
        "rl.sampling_attempts=3",
        "rl.success_low=0",
        "rl.group_size=2",
        "rl.episodes_per_iteration=2",
        "rl.success_high=1",
        "rl.iterations=4",
    )
    values = [values for _, values in records(tmp_path / "run")]
    assert [v["rollout/episodes"] for v in values] == [4, 0, 4, 0]
    assert [v["rollout/surplus_groups"] for v in values] == [1, 0, 1, 0]
    assert [v["rollout/groups"] for v in values] == [1, 1, 1, 1] and values[3]["rollout/total_episodes"] == 8
    # The curriculum counts an episode once, in the round that learns from it.
    counted = [sum(n for key, n in v.items() if key.startswith("curriculum/episodes/")) for v in values]
    assert counted == [2, 2, 2, 2]
    assert "rollout/success" not in values[1]


def test_the_curriculum_counts_what_dynamic_sampling_drops(sim: SimPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of an even seed pass for informative here, as nobody swings this pendulum up by chance; the others are dropped."""
    monkeypatch.setattr(groups, "success_rate", lambda group: 0.5 if group[0].spec.seed % 2 == 0 else 1.0)
    overrides = ("objective.name=grpo", "rl.sampling_attempts=4", "rl.group_size=2", "rl.episodes_per_iteration=8")
    train(sim, str(tmp_path), "run", *overrides, "rl.iterations=3")
    values = [values for _, values in records(tmp_path / "run")]
    counted = sum(n for v in values for key, n in v.items() if key.startswith("curriculum/episodes/"))
    assert counted == sum(v["rollout/episodes"] for v in values) - 2 * values[-1]["rollout/surplus_groups"]
    drawn = sum(v["rollout/episodes"] for v in values) / 2
    assert drawn > sum(v["rollout/groups"] for v in values) + values[-1]["rollout/surplus_groups"], "nothing was dropped"


def test_a_run_without_anything_to_learn_from_stops_and_says_why(sim: SimPool, tmp_path: Path) -> None:
    """Nobody swings a pendulum up within one step."""
    overrides = ("objective.name=grpo", "rl.sampling_attempts=2", "rl.group_size=3", "task.suite=pendulum", "rl.iterations=3")
    assert train(sim, str(tmp_path), "run", *overrides, limits=(1,)) == 0
    reason = (tmp_path / "run" / "stopped.txt").read_text()
    assert "in 2 attempts (12 episodes, 0% successes) no group" in reason and "too weak" in reason
    assert not records(tmp_path / "run")
    # The same command ends at once: the run would only repeat itself.
    assert train(sim, str(tmp_path), "run", *overrides, limits=(1,)) == 0
