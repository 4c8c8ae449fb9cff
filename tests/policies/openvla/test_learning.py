"""Reinforcement learning from a checkpoint on disk, on a simulator that needs nothing but numpy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from vla_rl.config_files import load_config
from vla_rl.policies import load_policy
from vla_rl.run import Run
from vla_rl.sim.pool import SimPool
from vla_rl.trainers.rl import train_rl
from vla_rl.trainers.sft import given_policy

sys.path.append(str(Path(__file__).parents[2] / "sim"))


def pendulum_checkpoint(folder: Path) -> Path:
    """Actions of one dimension, for a pendulum."""
    bounds = {"q01": [-1.0], "q99": [1.0], "mask": [True]}
    (folder / "dataset_statistics.json").write_text(json.dumps({"pendulum": {"action": bounds}}))
    return folder


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_ppo_runs_from_a_checkpoint_and_keeps_its_format(
    tiny: object, tmp_path: Path, checkpoints: Callable[[str], Path], decoding: str
) -> None:
    source = pendulum_checkpoint(tiny.write_checkpoint(tmp_path / "source", tiny.CASES["openvla_siglip"]))  # type: ignore[attr-defined]
    words = [
        "task.suite=pendulum", "task.shipped_states=0", "sim.cameras=[front]", "sim.image_size=16", "sim.num_envs=4",
        "policy.chunk_length=4", "rl.iterations=2", "rl.episodes_per_iteration=4", "rl.minibatch_turns=8",
        "rl.microbatch_turns=8", "rl.warmup_iterations=1", "rl.learning_rate=1e-3", "evaluation.every=0", "run.threads=1",
        f"run.root={tmp_path}", "run.name=r", f"policy.path={source}", f"policy.decoding={decoding}",
    ]  # fmt: skip
    config = load_config(None, words)
    device = torch.device("cpu")
    before, policy = given_policy(config, device), given_policy(config, device)
    assert (policy.chunk_length, policy.config.decoding) == (4 if decoding == "parallel" else 1, decoding)
    sim = SimPool("pendulum_backend:PendulumBackend", num_envs=4, num_workers=1, cameras=("front",), image_size=16, options={})
    with closing(sim), Run(config) as run:
        assert train_rl(run, sim, policy, (8, 12), lambda: pytest.fail("PPO asks for no demonstrations")) == 2

    saved = load_policy(tmp_path / "r")
    # The first of the two rounds trains the critic alone.
    assert saved.original is not None and saved.version == policy.version == 1
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name])
    moved = [name for name, tensor in before.state_dict().items() if not torch.equal(tensor, saved.state_dict()[name])]
    assert any(name.startswith("language_model") for name in moved) and any(name.startswith("vision") for name in moved)
    files = set(json.loads((tmp_path / "source" / "config.json").read_text()))
    record = json.loads(next((tmp_path / "r").glob("checkpoints/rl/step_*/policy/config.json")).read_text())
    assert files <= set(record) and record["model_type"] == "openvla"
