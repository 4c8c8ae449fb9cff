"""The policy of a run that did best while it was trained, beside the last one."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vla_rl.policies import PolicyError
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.policies.writing import new_folder

BEST = "best"
"""Folder of a run."""


def keep_best(run_directory: Path, policy: GaussianPolicy, step: int) -> None:
    """Write `best/step_STEP`, then remove what was there before. Raises `PolicyError` where the disk does not take it."""
    folder = run_directory / BEST
    place = folder / f"step_{step:08d}"
    with new_folder(place) as writing:
        policy.save(writing)
        shutil.rmtree(place, ignore_errors=True)
    for other in folder.iterdir():
        if other != place:
            shutil.rmtree(other)


def best_policy(run_directory: Path, device: torch.device | str = "cpu") -> tuple[GaussianPolicy, int] | None:
    """The policy that did best on the validation seeds, and its step; None where nothing was validated."""
    found = sorted((run_directory / BEST).glob("step_*"))
    return (GaussianPolicy.load(found[-1], device), int(found[-1].name.removeprefix("step_"))) if found else None


def chosen_policy(run_directory: Path, best: bool, device: torch.device | str = "cpu") -> GaussianPolicy:
    """The best policy of a run, or the newest. Raises `PolicyError` where there is none."""
    if not best:
        return GaussianPolicy.load(run_directory, device)
    found = best_policy(run_directory, device)
    if found is None:
        raise PolicyError(f"{run_directory} has no best policy, as nothing was evaluated during training (evaluation.every)")
    return found[0]
