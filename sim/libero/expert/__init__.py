"""A scripted expert for LIBERO's tasks."""

from vla_rl.sim.libero.expert.expert import TaskExpert
from vla_rl.sim.libero.expert.goals import Subgoal, parse_goals
from vla_rl.sim.libero.expert.noise import ActionNoise, NoiseSettings
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView
from vla_rl.sim.libero.expert.skills import ExpertStep, Skill
from vla_rl.sim.libero.expert.style import PLAIN, Style

__all__ = [
    "PLAIN",
    "ActionNoise",
    "ExpertError",
    "ExpertStep",
    "NoiseSettings",
    "SceneView",
    "Skill",
    "Style",
    "Subgoal",
    "TaskExpert",
    "parse_goals",
]
