"""A scripted expert for LIBERO's pick-and-place tasks."""

from vla_rl.sim.libero.expert.pick_place import ExpertStep, PickPlaceExpert, PlaceGoal, Skill, parse_goals
from vla_rl.sim.libero.expert.scene import ExpertError, Scene

__all__ = ["ExpertError", "ExpertStep", "PickPlaceExpert", "PlaceGoal", "Scene", "Skill", "parse_goals"]
