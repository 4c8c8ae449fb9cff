"""Where in a run directory or a checkpoint the policy is."""

from __future__ import annotations

from pathlib import Path

from vla_rl.policies.base import PolicyError

PHASES = ("rl", "off_policy", "sft")
"""Phases of a run, the last one to train first."""


def policy_folder(path: Path) -> Path:
    """The folder that holds the policy of `path`: a policy's own folder, a checkpoint (`step_000012`), or a run directory,
    whose newest checkpoint of the last phase counts. Raises `PolicyError` where there is none."""
    if not path.is_dir():
        raise PolicyError(f"there is no policy at {path}: not a folder; give a run directory or a checkpoint")
    if (path / "policy").is_dir():
        return path / "policy"
    for phase in PHASES:
        # A checkpoint has its name only once it is whole, and the names sort by step.
        steps = sorted((path / "checkpoints" / phase).glob("step_*/policy"))
        if steps:
            return steps[-1]
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise PolicyError(f"the run {path} has no checkpoint yet; wait for its first one or continue the run")
    return path
