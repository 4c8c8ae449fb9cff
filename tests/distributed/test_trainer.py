"""The trainer on two ranks: each with its own simulators, all with the same weights, and resumable."""

from pathlib import Path

import numpy as np
import pytest
from launching import launch
from safetensors.numpy import load_file

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config import ConfigError
from vla_rl.config_files import load_config
from vla_rl.metrics import read_metrics
from vla_rl.policies import load_policy
from vla_rl.trainers.pipeline import check_memory_plan

pytest.importorskip("peft")

TIMED = ("time/", "speed/")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    launch(Path(__file__).parent / "pendulum_ranks.py", str(root))
    return root


def records(directory: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r["values"].items() if not k.startswith(TIMED)} for r in read_metrics(directory)]


def weights(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = latest_checkpoint(directory / "checkpoints" / "rl")
    assert checkpoint is not None
    return load_file(checkpoint / "policy" / "model.safetensors")


@pytest.mark.parametrize(("name", "rounds"), [("whole", 3), ("reference", 1), ("lora", 2)])
def test_ranks_share_the_work_and_agree(name: str, rounds: int, runs: Path) -> None:
    first, second = records(runs / name), records(runs / name / "ranks" / "1")
    assert len(first) == rounds and first == second, "both ranks learn from all episodes, and alike"
    assert all(record["rollout/episodes"] == 6 for record in first)
    assert not (runs / name / "ranks" / "1" / "checkpoints").exists()


def test_a_sharded_run_in_two_halves_is_a_run_in_one(runs: Path) -> None:
    assert records(runs / "halves") == records(runs / "whole")
    for name, value in weights(runs / "whole").items():
        np.testing.assert_array_equal(weights(runs / "halves")[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_who_acts_has_the_learners_weights(name: str, runs: Path) -> None:
    """Otherwise the ratio before the first step of the second round would not be 1, which stops a run; and updates move it."""
    assert records(runs / name)[-1]["policy/ratio_deviation"] > 1e-5
    assert records(runs / name)[-1]["rollout/policy_version"] == len(records(runs / name)) - 2  # one round of warm-up
    assert load_policy(runs / name).version == len(records(runs / name)) - 1


def test_adapters_are_not_sharded() -> None:
    with pytest.raises(ConfigError, match="^policy.sharded cuts[^\n]*set policy.sharded=false[^\n]*$"):
        check_memory_plan(load_config(None, ["policy.sharded=true", "policy.lora_rank=4"]))
