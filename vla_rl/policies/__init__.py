"""Policies: what chooses actions, and how they are built and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_rl.policies.base import ActionEvaluation, Policy, PolicyError

if TYPE_CHECKING:
    from vla_rl.policies.openvla.policy import OpenVLAPolicy

__all__ = ["ActionEvaluation", "Policy", "PolicyError", "load_policy"]


def load_policy(path: str | Path, device: Any = None) -> OpenVLAPolicy:
    """The policy of a run directory, a checkpoint or a policy folder, in evaluation mode, on `device` (default: the CPU).

    Raises `PolicyError`, in one line, when there is none, when a file is missing or broken, or when the weights are of
    another architecture.
    """
    from vla_rl.policies.locate import policy_folder
    from vla_rl.policies.openvla.checkpoint import load

    return load(policy_folder(Path(path)), device)
