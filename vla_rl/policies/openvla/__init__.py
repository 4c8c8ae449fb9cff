"""OpenVLA-style token policies."""

from vla_rl.policies.openvla.action_tokens import ActionStatistics, ActionTokenizer
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.modeling import PolicyInputs
from vla_rl.policies.openvla.original_config import CheckpointOptions
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.presets import build_policy

__all__ = [
    "ActionStatistics",
    "ActionTokenizer",
    "CheckpointOptions",
    "OpenVLAConfig",
    "OpenVLAPolicy",
    "PolicyInputs",
    "build_policy",
]
