"""Policies: what chooses actions, and how they are built and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.policies.base import ActionEvaluation, Policy, PolicyError

if TYPE_CHECKING:
    import torch

    from vla_rl.policies.openvla.original_config import CheckpointOptions
    from vla_rl.policies.openvla.policy import OpenVLAPolicy

__all__ = ["ActionEvaluation", "Policy", "PolicyError", "load_policy"]


def load_policy(
    path: str | Path,
    device: torch.device | str | None = None,
    options: CheckpointOptions | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> OpenVLAPolicy:
    """The policy in `path`, in evaluation mode, on `device` (default: the CPU).

    `path` is a folder that `Policy.save` wrote, a checkpoint, or a run directory, of which the newest policy is taken; or an
    original OpenVLA or OpenVLA-OFT checkpoint, as a folder or as a repository of the Hugging Face hub (`owner/name`), about
    which `options` says what its files do not. `dtype` is that of the weights; by default what the files have.
    Raises `PolicyError`, in one line, when there is none, when a file is missing or broken, when the weights are of
    another architecture, or when the policy was saved with other `options`. `verify=False` skips reading every byte of a
    checkpoint's policy, after `latest_checkpoint` has.
    """
    from vla_rl.policies.openvla.hub import local_folder
    from vla_rl.policies.openvla.policy import OpenVLAPolicy

    return OpenVLAPolicy.load(local_folder(path), device or "cpu", options, dtype, verify)
