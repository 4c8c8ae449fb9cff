"""Policies: what chooses actions, and how they are built and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.policies.base import ActionEvaluation, Policy, PolicyError

if TYPE_CHECKING:
    import torch

    from vla_rl.policies.openvla.policy import OpenVLAPolicy

__all__ = ["ActionEvaluation", "Policy", "PolicyError", "load_policy"]


def load_policy(path: str | Path, device: torch.device | str | None = None) -> OpenVLAPolicy:
    """The policy in `path`, in evaluation mode, on `device` (default: the CPU).

    `path` is a folder that `Policy.save` wrote, a checkpoint, or a run directory, of which the newest policy is taken.
    Raises `PolicyError`, in one line, when there is none, when a file is missing or broken, or when the weights are of
    another architecture.
    """
    from vla_rl.policies.openvla.policy import OpenVLAPolicy

    folder = Path(path)
    if not folder.is_dir():
        raise PolicyError(f"there is no policy at {folder}: it is not a folder")
    return OpenVLAPolicy.load(folder, device or "cpu")
