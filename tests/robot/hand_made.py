"""A policy whose weights are written by hand, and its export: it drives like pure pursuit, and needs no training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from vla_rl.control_config import ControlConfig, load_experiment
from vla_rl.driving.observation import observation_fields, observation_size
from vla_rl.driving.settings import RobotSettings
from vla_rl.export import export_policy
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.sim.wheeled.settings import task_settings

OPEN_FIELD: dict[str, Any] = {"scene": {"standing": [0, 0], "moving": [0, 0], "boxes": [0, 0]}}
SPEED, POINT = 0.28, 2
"""m/s, and the previewed point that the policy steers at: 0.6 m ahead of a slow robot."""


def steering_policy(settings: RobotSettings) -> GaussianPolicy:
    """Constant speed; turns with 2 v y / d^2 at the point (x, y), which is about d ahead.

    The one hidden unit is GELU(y / scale + 10) = y / scale + 10, because GELU is the identity far from 0.
    """
    sizes = {field.name: field.size for field in observation_fields(settings)}
    before = sum(list(sizes.values())[: list(sizes).index("path ahead")])
    preview = settings.view.preview
    gain = 2 * SPEED / preview[POINT] ** 2 * max(preview) / settings.limits.turn
    policy = GaussianPolicy(observation_size(settings), 2, (1,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        first, last = policy.network[0], policy.network[2]
        first.weight[0, before + 2 * POINT + 1] = 1.0
        first.bias[0] = 10.0
        last.bias[0] = math.atanh(SPEED / settings.limits.speed)
        last.weight[1, 0], last.bias[1] = gain, -10.0 * gain
    policy.version = 7
    return policy


def tracking_config(options: dict[str, Any] | None = None) -> ControlConfig:
    config = load_experiment("configs/wheeled_tracking.yaml")
    assert isinstance(config, ControlConfig)
    return config.model_copy(update={"sim": config.sim.model_copy(update={"options": options or OPEN_FIELD})})


def hand_made_export(folder: Path, options: dict[str, Any] | None = None) -> Path:
    config = tracking_config(options)
    return export_policy(steering_policy(task_settings(config.sim.id, config.sim.options).robot), config, folder)
