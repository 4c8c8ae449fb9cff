"""A policy to serve, and observations as messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from serving import RunningServer

from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig
from vla_rl.serve.settings import ServeSettings
from vla_rl.types import Observation

CAMERAS = ("agentview", "robot0_eye_in_hand")
INSTRUCTIONS = ("lift the cube", "put the red mug to the right of the plate", "open")
Message = dict[str, Any]


@pytest.fixture(scope="session")
def policy() -> OpenVLAPolicy:
    """Chunks of 3 actions of 7 dimensions, LIBERO's cameras at 16 px and its proprioception; actions depend on the images."""
    return build_policy(
        "tiny",
        cameras=CAMERAS,
        chunk_length=3,
        action_dim=7,
        proprio_dim=8,
        instructions=INSTRUCTIONS,
        statistics=ActionStatistics.unit(7),
        seed=0,
        image_size=16,
        featurizers=(FeaturizerConfig(kind="conv", patch_size=8, width=16, layers=0),),
        language=LanguageConfig(width=32, layers=2, heads=2, mlp_width=48, initializer_range=0.2, max_positions=256),
    )


@pytest.fixture
def start(policy: OpenVLAPolicy) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers of the policy, `start(max_batch=4, token=...)`, which stop when the test ends."""
    running = []

    def begin(token: str | None = None, policy: OpenVLAPolicy = policy, **settings: Any) -> RunningServer:
        running.append(RunningServer(policy, ServeSettings(**{"port": 0, "max_requests_per_s": 1e6, **settings}), token))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def observe() -> Callable[[int], Message]:
    return message


@pytest.fixture
def local(policy: OpenVLAPolicy) -> Callable[..., np.ndarray]:
    """Actions [A, D] that the policy chooses for a message without a server."""

    def act(asked: Message, policy: OpenVLAPolicy = policy) -> np.ndarray:
        observation = Observation(
            images={camera: asked[f"images/{camera}"][None] for camera in CAMERAS},
            proprio=asked["proprio"][None],
            instruction=[asked["instruction"]],
        )
        generators = [torch.Generator().manual_seed(asked["seed"])] if "seed" in asked else None
        return np.asarray(policy.act(observation, asked.get("temperature", 0.0), generators).actions[0])

    return act


def message(seed: int) -> Message:
    draw = np.random.default_rng(seed)
    asked: Message = {f"images/{camera}": draw.integers(0, 256, (20, 20, 3), dtype=np.uint8) for camera in CAMERAS}
    return asked | {"proprio": draw.normal(size=8).astype(np.float32), "instruction": INSTRUCTIONS[seed % len(INSTRUCTIONS)]}
