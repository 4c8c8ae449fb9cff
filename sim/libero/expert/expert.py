"""The scripted expert: LIBERO's goals as subgoals, each with the maneuver that brings it about.

Closed-loop at every control step: it reads poses from the simulator, and so recovers from pushes, slips and drops. When all
subgoals are through and a predicate still fails, it begins again with those that fail. Commands are exactly 0 where nothing
is needed: a rotation command that is merely small would re-anchor the orientation goal of robosuite's controller, and
action tokens have an exact bin for 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert.articulated import JointManeuver
from vla_rl.sim.libero.expert.goals import PLACING, Subgoal, order_subgoals, parse_goals
from vla_rl.sim.libero.expert.grasps import Grasp
from vla_rl.sim.libero.expert.joints import moving_part
from vla_rl.sim.libero.expert.pick_place import PlaceManeuver
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView
from vla_rl.sim.libero.expert.skills import OPEN, Command, ExpertStep, Maneuver, Skill
from vla_rl.sim.libero.expert.style import PLAIN, Style


class TaskExpert:
    """Solves one episode of a task; make a new one for every episode."""

    def __init__(self, goal_state: Sequence[Sequence[str]], holds: Callable[[list[str]], bool], style: Style = PLAIN) -> None:
        """`holds` tells whether a BDDL predicate is true of the state that `act` is given. Raises `ExpertError`."""
        self._style = style
        self._goals = parse_goals(goal_state)
        self._holds = holds
        self._plan: list[Subgoal] | None = None
        self._maneuver: Maneuver | None = None
        self._failed: dict[str, list[Grasp]] = {}

    @staticmethod
    def of(backend: LiberoBackend, slot: int, style: Style = PLAIN) -> TaskExpert:
        """The expert for the task of a slot, with LIBERO's own predicates."""
        return TaskExpert(backend.goal(slot), lambda words: bool(backend.problem(slot)._eval_predicate(words)), style)

    @property
    def done(self) -> bool:
        """Everything is as it should be and the hand has withdrawn."""
        return self._plan == [] and self._maneuver is None

    def act(self, scene: SceneView) -> ExpertStep:
        """The action for the present state; call it once a control step. Raises `ExpertError` where there is no plan."""
        if self._plan is None or (not self._plan and not self._all_hold()):
            self._plan = order_subgoals(scene, self._goals, lambda goal: self._holds(goal.words))
        while self._plan:
            goal = self._plan[0]
            if self._maneuver is None:
                self._maneuver = self._begin(scene, goal)
            if not self._maneuver.done:
                command = self._maneuver.act(scene)
                return ExpertStep(command.action, self._maneuver.skill, goal.label)
            self._plan.pop(0)
            self._maneuver = None
            if not self._plan:
                self._plan = order_subgoals(scene, self._goals, lambda goal: self._holds(goal.words))
        return ExpertStep(Command(np.zeros(3), np.zeros(3), OPEN).action, Skill.HOLD)

    def _all_hold(self) -> bool:
        return all(self._holds(goal.words) for goal in self._goals)

    def _begin(self, scene: SceneView, goal: Subgoal) -> Maneuver:
        if goal.predicate in PLACING:
            return PlaceManeuver(
                goal.arguments[0], goal.arguments[1], self._failed.setdefault(goal.arguments[0], []), self._style
            )
        if goal.predicate == "up":
            raise ExpertError(f"no task of LIBERO's 130 lifts an object for its own sake: {goal.label}")
        part = moving_part(scene, goal.arguments[0])
        opens = goal.predicate in ("open", "turnon")
        return JointManeuver(part, opens, part.is_knob(scene), lambda: self._holds(goal.words), self._style)
