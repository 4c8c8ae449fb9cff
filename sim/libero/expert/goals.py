"""BDDL goals as an ordered list of subgoals, with the preparations that the goal does not name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vla_rl.sim.libero.expert.joints import drawer_of
from vla_rl.sim.libero.expert.scene_view import ExpertError, SceneView

PLACING = ("in", "on")
OPENING, CLOSING = ("open",), ("close",)
TURNING = ("turnon", "turnoff")
LIFTING = ("up",)
ARGUMENTS = dict.fromkeys(PLACING, 2) | dict.fromkeys((*OPENING, *CLOSING, *TURNING, *LIFTING), 1)
"""How many each predicate takes."""
WIDE_ENOUGH = 0.7
"""Share of its range from which on a drawer is open enough to put something in."""


@dataclass(frozen=True)
class Subgoal:
    """One predicate to make true."""

    predicate: str
    arguments: tuple[str, ...]
    prepares: bool = False
    """It is needed on the way and not part of the goal."""

    @property
    def label(self) -> str:
        return " ".join((self.predicate, *self.arguments))

    @property
    def words(self) -> list[str]:
        return [self.predicate, *self.arguments]


def parse_goals(goal_state: Sequence[Sequence[str]]) -> list[Subgoal]:
    """The BDDL goal, a conjunction of predicates, as it stands. Raises `ExpertError` for an unknown predicate."""
    goals = []
    for words in goal_state:
        name = words[0].lower()
        if ARGUMENTS.get(name) != len(words) - 1:
            raise ExpertError(f"the expert knows the predicates {', '.join(ARGUMENTS)}, not {list(words)}")
        goals.append(Subgoal(name, tuple(words[1:])))
    return goals


def order_subgoals(scene: SceneView, goals: Sequence[Subgoal], holds: Callable[[Subgoal], bool]) -> list[Subgoal]:
    """What is still to do, in an order in which nothing blocks what follows.

    Drawers that stay shut come first (an open one is in the way), then knobs (before something stands beside them), then
    what must be open, the closed drawers that something goes into included, then objects, each after what carries
    it, and last the drawers and doors that close on something.
    """
    placing = [goal for goal in goals if goal.predicate in PLACING]
    filled = {goal.arguments[1] for goal in placing}
    opened = {goal.arguments[0] for goal in goals if goal.predicate in OPENING}
    missing = [goal for goal in placing if not holds(goal)]
    preparations = [
        Subgoal("open", (goal.arguments[1],), prepares=True)
        for goal in missing
        if goal.predicate == "in" and goal.arguments[1] not in opened and _is_shut(scene, goal.arguments[1])
    ]
    closing = [goal for goal in goals if goal.predicate in CLOSING]
    later = [goal for goal in closing if any(_concerns(goal.arguments[0], region) for region in filled)]
    opening = [goal for goal in goals if goal.predicate in OPENING]
    turning = [goal for goal in goals if goal.predicate in TURNING]
    lifting = [goal for goal in goals if goal.predicate in LIFTING]
    first = [goal for goal in closing if goal not in later]
    ordered = [*first, *turning, *opening, *dict.fromkeys(preparations), *_carriers_first(placing), *later, *lifting]
    return [goal for goal in ordered if goal.prepares or not holds(goal)]


def _is_shut(scene: SceneView, region: str) -> bool:
    part = drawer_of(scene, region)
    return part is not None and part.openness(scene) < WIDE_ENOUGH


def _concerns(part: str, region: str) -> bool:
    """Whether closing a part (a drawer's region, or a fixture with a door) shuts a region in."""
    return region == part or region.startswith(part + "_")


def _carriers_first(goals: Sequence[Subgoal]) -> list[Subgoal]:
    """Objects that others are put on or into come before those others."""
    waiting, ordered = list(goals), []
    while waiting:
        moving = {goal.arguments[0] for goal in waiting}
        free = next((goal for goal in waiting if goal.arguments[1] not in moving), waiting[0])
        waiting.remove(free)
        ordered.append(free)
    return ordered
