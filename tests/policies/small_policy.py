"""The smallest real policy: what tests of learning and of rollouts use."""

from typing import Any

from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig


def small_policy(
    chunk_length: int = 2, action_dim: int = 2, proprio_dim: int = 3, instructions: tuple[str, ...] = ("go",), **overrides: Any
) -> OpenVLAPolicy:
    """One camera, `front`, at 16 px; the same weights every time."""
    return build_policy(
        "tiny",
        cameras=("front",),
        chunk_length=chunk_length,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        instructions=instructions,
        statistics=ActionStatistics.unit(action_dim),
        seed=0,
        image_size=16,
        featurizers=(FeaturizerConfig(kind="conv", patch_size=8, width=16, layers=0),),
        **{"language": LanguageConfig(width=32, layers=1, heads=2, mlp_width=64), **overrides},
    )
