"""What a run begins with where a policy is given: as it was saved, and with what the configuration says beside it."""

from pathlib import Path

import pytest
import torch
from pendulum_run import SETTINGS, pendulum_policy

from vla_rl.config import ConfigError
from vla_rl.config_files import load_config
from vla_rl.policies import PolicyError
from vla_rl.run import Run
from vla_rl.trainers.pipeline import check_settings, supervised_start


def test_settings_beside_a_checkpoint_hold_or_are_refused(tmp_path: Path) -> None:
    """A trunk that the value loss should have trained, and did not, would show nowhere."""
    pendulum_policy().save(tmp_path / "given")
    base = [*SETTINGS, f"run.root={tmp_path}", f"policy.checkpoint={tmp_path / 'given'}"]
    with Run(load_config(None, [*base, "run.name=a", "policy.value_gradient=true", "policy.dtype=bfloat16"])) as run:
        policy = supervised_start(run)
    assert policy.config.value_gradient and {p.dtype for p in policy.policy_parameters()} == {torch.bfloat16}
    with Run(load_config(None, [*base, "run.name=b"])) as run:
        policy = supervised_start(run)
    assert not policy.config.value_gradient and {p.dtype for p in policy.policy_parameters()} == {torch.float32}
    with (
        Run(load_config(None, [*base, "run.name=c", "policy.chunk_length=3"])) as run,
        pytest.raises(PolicyError, match=r"saved with chunk_length 4, not 3"),
    ):
        supervised_start(run)


def test_two_starts_are_one_too_many() -> None:
    config = load_config(None, ["policy.checkpoint=here", "policy.path=there"])
    with pytest.raises(ConfigError, match=r"^policy\.checkpoint and policy\.path both"):
        check_settings(config)
