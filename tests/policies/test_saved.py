"""Policies that were saved: damage is seen, options that differ are refused, and a full disk is told."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vla_rl.checkpoint import save_checkpoint
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.best import keep_best
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.policies.openvla import CheckpointOptions, OpenVLAPolicy
from vla_rl.policies.writing import new_folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["openvla", "gaussian"])
def test_a_damaged_checkpoint_does_not_act(policy: OpenVLAPolicy, tmp_path: Path, kind: str) -> None:
    saved = policy if kind == "openvla" else GaussianPolicy(3, 2, (8,))
    load = load_policy if kind == "openvla" else GaussianPolicy.load
    path = save_checkpoint(tmp_path / "checkpoints/rl", 1, policy_save=saved.save, optimizers={}, state={}, keep=1)
    assert load(tmp_path).version == 0
    flip_a_bit(path / "policy" / "model.safetensors")
    with pytest.raises(PolicyError, match=r"step_000001 is damaged: policy/model.safetensors differs from its manifest.json"):
        load(tmp_path)
    if kind == "openvla":
        assert load_policy(tmp_path, verify=False).version == 0, "what was looked at already is not read twice"
    (path / "manifest.json").write_text("{")
    with pytest.raises(PolicyError, match=r"^[^\n]*step_000001 is not whole: [^\n]*; use another checkpoint$"):
        load(tmp_path)


def test_options_that_a_saved_policy_does_not_have_are_refused(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    """Decoding in parallel, cameras front and wrist, chunks of 3, no statistics with a name."""
    policy.save(tmp_path)
    options: dict[str, CheckpointOptions] = {
        "decoding parallel, not autoregressive": CheckpointOptions(decoding="autoregressive"),
        "attention slots, not causal": CheckpointOptions(attention="causal"),
        "chunk_length 3, not 5": CheckpointOptions(chunk_length=5),
        "unnorm_key None, not bridge": CheckpointOptions(unnorm_key="bridge"),
        r"cameras \['front', 'wrist'\], not \['wrist'\]": CheckpointOptions(cameras=("wrist",)),
    }
    for reason, chosen in options.items():
        with pytest.raises(PolicyError, match=rf"was saved with {reason}: leave that setting as it was saved$") as caught:
            load_policy(tmp_path, options=chosen)
        assert str(tmp_path) in str(caught.value)
    # What agrees, and what a configuration holds that does not mention it.
    same = CheckpointOptions(cameras=("wrist", "top", "front"), decoding="parallel", attention=None, chunk_length=8)
    assert load_policy(tmp_path, options=same).config == policy.config


@pytest.mark.parametrize("value_gradient", [False, True])
def test_what_the_value_loss_trains_is_chosen_anew(
    build: Callable[..., OpenVLAPolicy], tmp_path: Path, value_gradient: bool
) -> None:
    build(value_gradient=not value_gradient).save(tmp_path)
    assert load_policy(tmp_path).config.value_gradient is not value_gradient
    loaded = load_policy(tmp_path, options=CheckpointOptions(value_gradient=value_gradient))
    assert loaded.config.value_gradient is loaded.model.config.value_gradient is value_gradient


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_best_policy_that_was_there(tmp_path: Path) -> None:
    policy = GaussianPolicy(100, 2, (100,))
    keep_best(tmp_path, policy, 1)
    for step in (1, 2):
        with (
            pytest.raises(PolicyError, match=rf"^[^\n]*step_0000000{step} was not written: [^\n]*free some space"),
            full_disk(20_000),
        ):
            keep_best(tmp_path, policy, step)
        assert [path.name for path in (tmp_path / "best").iterdir()] == ["step_00000001"]
    keep_best(tmp_path, policy, 2)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step_00000002"]


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), new_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "b" / "c") as folder:
        torch.save({"x": torch.zeros(1)}, folder / "file")
        assert not (tmp_path / "b" / "c").exists()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["c"] and (tmp_path / "b" / "c" / "file").is_file()
