"""Policies by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS, ActionStatistics
from vla_rl.policies.openvla.config import FeaturizerConfig, LanguageConfig, OpenVLAConfig
from vla_rl.policies.openvla.modeling import new_model
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.prompts import PromptTokenizer

MAX_TEXT_TOKENS = 2048

LIBERO_PROPRIO_CENTRE = (0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0)
LIBERO_PROPRIO_SCALE = (0.4, 0.4, 0.6, 3.14, 3.14, 3.14, 0.04, 0.04)
"""Reach of the arm (m), half a turn (rad), opening of a finger (m)."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 64,
        "featurizers": (FeaturizerConfig(kind="conv", patch_size=16, width=128, layers=1),),
        "language": LanguageConfig(width=128, layers=3, heads=4, mlp_width=384),
        "camera_embedding": True,
        "slot_embedding": "learned",
    },
    "state": {
        # For policies that are told what others have to see: no camera is needed, nothing is hidden from training, and a chunk
        # of RoboTwin takes 25 places in the sequence.
        "image_size": 32,
        "featurizers": (FeaturizerConfig(kind="conv", patch_size=16, width=64, layers=0),),
        "language": LanguageConfig(width=128, layers=2, heads=4, mlp_width=384),
        "camera_embedding": True,
        "slot_embedding": "learned",
        "slot_holds": "action",
        "proprio_width": 512,
        "proprio_dropout": 0.0,
        "proprio_noise": 0.005,
        "logit_scale": 16.0,
    },
    "small": {
        "image_size": 128,
        "featurizers": (
            FeaturizerConfig(
                kind="dinov2",
                patch_size=16,
                width=192,
                layers=6,
                heads=3,
                mlp_width=768,
                registers=4,
                mean=(0.484375, 0.455078125, 0.40625),
                std=(0.228515625, 0.2236328125, 0.224609375),
            ),
            FeaturizerConfig(kind="siglip", patch_size=16, width=192, layers=6, heads=3, mlp_width=768),
        ),
        "language": LanguageConfig(width=512, layers=8, heads=8, mlp_width=1376),
        "camera_embedding": True,
        "slot_embedding": "learned",
        "projector_layers": 3,
    },
}


def check_preset(preset: str) -> None:
    """Raises `PolicyError` for a preset that does not exist."""
    if preset not in PRESETS:
        raise PolicyError(f"there is no policy preset {preset!r}; choose one of: {', '.join(sorted(PRESETS))}")


def build_policy(
    preset: str,
    *,
    cameras: Sequence[str],
    chunk_length: int,
    action_dim: int,
    proprio_dim: int,
    instructions: Sequence[str],
    statistics: ActionStatistics,
    seed: int,
    **overrides: Any,
) -> OpenVLAPolicy:
    """A new policy; `overrides` are fields of `OpenVLAConfig`.

    8-d proprioception gets LIBERO's physical scales, any other the scale 1, unless `proprio_centre` and `proprio_scale`
    are given. Raises `PolicyError` for an unknown preset or override.
    """
    check_preset(preset)
    unknown = sorted(set(overrides) - set(OpenVLAConfig.__dataclass_fields__))
    if unknown:
        raise PolicyError(f"unknown settings of the policy: {', '.join(unknown)}")
    prompts = PromptTokenizer.train(instructions, MAX_TEXT_TOKENS)
    libero = proprio_dim == len(LIBERO_PROPRIO_SCALE)
    config = OpenVLAConfig(
        cameras=tuple(cameras),
        chunk_length=chunk_length,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        vocab_size=prompts.vocab_size + NUM_ACTION_TOKENS,
        proprio_centre=overrides.pop("proprio_centre", LIBERO_PROPRIO_CENTRE if libero else (0.0,) * proprio_dim),
        proprio_scale=overrides.pop("proprio_scale", LIBERO_PROPRIO_SCALE if libero else (1.0,) * proprio_dim),
        **PRESETS[preset],
    )
    config = replace(config, **overrides)
    return OpenVLAPolicy(config, prompts, statistics, new_model(config, seed)).eval()
