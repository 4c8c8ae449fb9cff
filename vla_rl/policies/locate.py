"""Where in a run directory or a checkpoint the policy is, and whether it is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vla_rl.policies.base import PolicyError
from vla_rl.policies.digest import file_digest

PHASES = ("rl", "off_policy", "sft")
"""Phases of a run, the last one to train first."""
STEP = re.compile(r"step_(\d+)(\.replaced)?")
"""A checkpoint, or one that waits for the new one of its step to get its name."""


def policy_folder(path: Path) -> Path:
    """The folder that holds the policy of `path`: a policy's own folder, a checkpoint (`step_000012`), or a run directory,
    whose newest checkpoint of the last phase counts. Raises `PolicyError` where there is none."""
    if not path.is_dir():
        raise PolicyError(f"there is no policy at {path}: not a folder; give a run directory or a checkpoint")
    if (path / "policy").is_dir():
        return path / "policy"
    for phase in PHASES:
        # A checkpoint has its name only once it is whole.
        steps = {}
        for policy in (path / "checkpoints" / phase).glob("step_*/policy"):
            if name := STEP.fullmatch(policy.parent.name):
                steps[int(name[1]), name[2] is None] = policy
        if steps:
            return steps[max(steps)]
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise PolicyError(f"the run {path} has no checkpoint yet; wait for its first one or continue the run")
    return path


def check_files(folder: Path) -> None:
    """Raise `PolicyError` where the policy of a checkpoint (`step_000012/policy`) is not as the checkpoint's manifest says.

    Reads every byte. A policy's folder elsewhere has no manifest.
    """
    checkpoint = folder.parent
    if folder.name != "policy" or not (checkpoint / "manifest.json").is_file():
        return
    try:
        files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
        expected = {name: entry["sha256"] for name, entry in files.items() if name.startswith("policy/")}
        damaged = [name for name, content in expected.items() if file_digest(checkpoint / name) != content]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"checkpoint {checkpoint} is not whole: {error!r}; use another checkpoint") from error
    if damaged:
        raise PolicyError(
            f"checkpoint {checkpoint} is damaged: {damaged[0]} differs from its manifest.json; use another checkpoint"
        )
