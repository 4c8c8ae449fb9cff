"""A policy small enough for tests, and observations for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig
from vla_rl.types import Observation

CAMERAS = ("front", "wrist")
INSTRUCTIONS = ("lift the cube", "put the red mug to the right of the plate", "open")


def make_policy(**overrides: Any) -> OpenVLAPolicy:
    """Chunks of 3 actions of 2 dimensions, two cameras of 16 px, 3-d proprioception."""
    settings: dict[str, Any] = {
        "image_size": 16,
        "featurizers": (FeaturizerConfig(kind="conv", patch_size=8, width=16, layers=0),),
        "language": LanguageConfig(width=32, layers=2, heads=2, mlp_width=48, initializer_range=0.2),
        "value_width": 16,
        "seed": 0,
        "statistics": ActionStatistics.unit(2),
        "proprio_dim": 3,
    }
    return build_policy(
        "tiny",
        cameras=CAMERAS,
        chunk_length=3,
        action_dim=2,
        instructions=INSTRUCTIONS,
        **{**settings, **overrides},
    )


def make_observation(batch: int, seed: int = 0, size: int = 20) -> Observation:
    draw = np.random.default_rng(seed)
    return Observation(
        images={name: draw.integers(0, 256, (batch, size, size, 3), dtype=np.uint8) for name in CAMERAS},
        proprio=draw.normal(size=(batch, 3)).astype(np.float32),
        instruction=[INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(batch)],
    )


@pytest.fixture
def build() -> Callable[..., OpenVLAPolicy]:
    return make_policy


@pytest.fixture
def observe() -> Callable[..., Observation]:
    return make_observation


@pytest.fixture
def policy() -> OpenVLAPolicy:
    return make_policy()


@pytest.fixture
def observation() -> Observation:
    """Six observations; their prompts have three different lengths."""
    return make_observation(6)
