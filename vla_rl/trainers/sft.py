"""The supervised start: demonstrations -> a policy that clones them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vla_rl.algorithms.sft import SftLearner
from vla_rl.checkpoint import latest_checkpoint, load_checkpoint
from vla_rl.config import Config
from vla_rl.data.chunks import ChunkDataset
from vla_rl.policies import load_policy
from vla_rl.policies.openvla import CheckpointOptions, OpenVLAPolicy
from vla_rl.progress import Progress
from vla_rl.run import Run, load_weights, prepare_for_training
from vla_rl.trainers.scratch import new_policy


def given_policy(config: Config, device: torch.device) -> OpenVLAPolicy:
    """What `policy.checkpoint` or `policy.path` names. Raises `PolicyError` where it cannot be read, or was saved otherwise than
    the configuration says."""
    policy = config.policy
    path = policy.checkpoint or policy.path
    assert path is not None
    options = CheckpointOptions(
        cameras=config.sim.cameras,
        unnorm_key=policy.unnorm_key,
        suite=config.task.suite,
        decoding=policy.decoding,
        attention=policy.attention,
        chunk_length=policy.chunk_length,
        centre_crop=policy.centre_crop,
        value_gradient=policy.value_gradient,
    )
    return load_policy(path, device, options, getattr(torch, policy.dtype) if policy.dtype else None)


def demonstrated_chunks(config: Config, paths: Sequence[Path], chunk_length: int) -> ChunkDataset:
    """Samples of the run's demonstrations, whose chunks mean what the simulator takes them for."""
    stride = config.sim.robotwin.waypoint_stride if config.sim.name == "robotwin" else 1
    return ChunkDataset.load(paths, config.sim.cameras, chunk_length, stride)


def train_sft(run: Run, find_demonstrations: Callable[[], Sequence[Path]], device: torch.device) -> OpenVLAPolicy:
    """Clone the demonstrations for `sft.steps` steps; a run that has done so already returns its policy.

    Every step draws its samples and their augmentation from (run.seed, step) alone, so a resumed run repeats an
    uninterrupted one bit for bit on CPU.
    """
    config = run.config.sft
    checkpoint = latest_checkpoint(run.checkpoints("sft"))
    if checkpoint is not None and checkpoint.name == f"step_{config.steps:06d}":
        return load_policy(checkpoint / "policy", device, verify=False)
    given = given_policy(run.config, device) if run.config.policy.path else None
    chunk_length = given.chunk_length if given else run.config.policy.chunk_length
    dataset = demonstrated_chunks(run.config, find_demonstrations(), chunk_length)
    policy = given or new_policy(run.config, dataset).to(device)
    prepare_for_training(policy, run.config, adapters=given is not None)
    learner = SftLearner(policy, config)
    step = 0
    if checkpoint is not None:
        restore = partial(load_weights, policy)
        step = load_checkpoint(checkpoint, policy_load=restore, optimizers=learner.optimizers, verify=False)["step"]
    run.metrics.truncate_after(step, "sft")
    with Progress("SFT", total=config.steps, done=step) as progress:
        while step < config.steps:
            rng = np.random.default_rng([run.config.run.seed, step])
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            samples = rng.integers(len(dataset), size=config.batch_size)
            stats = learner.update(step, *dataset[samples], generator)
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                run.metrics.log(step, stats, phase="sft")
                progress.advance(f"loss {stats['loss']:.3f}, token accuracy {stats['token_accuracy']:.1%}", to=step)
            if step % config.checkpoint_every == 0 or step == config.steps:
                run.save("sft", step, policy, learner.optimizers, {"step": step})
    # As it comes back from the checkpoint when the run continues.
    return policy.merge()
