"""A scripted expert for LIBERO's pick-and-place tasks."""

from vla_rl.sim.libero.expert.noise import ActionNoise, NoiseSettings
from vla_rl.sim.libero.expert.pick_place import ExpertStep, PickPlaceExpert, PlaceGoal, Skill, parse_goals
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

__all__ = [
    "ActionNoise",
    "ExpertError",
    "ExpertStep",
    "NoiseSettings",
    "PickPlaceExpert",
    "PlaceGoal",
    "SceneView",
    "Skill",
    "parse_goals",
]
