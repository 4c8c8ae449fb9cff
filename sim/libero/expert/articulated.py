"""Drawers, doors and knobs: take hold of the handle and follow the part's own path, or push it shut from outside.

The target runs ahead of the part along the path that its joint allows, so the hand never fights the furniture, and a
push or a slip leaves the law as it is: it depends on the present pose alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.libero.expert.hand import OPEN_HALF, lowest_point
from vla_rl.sim.libero.expert.handles import Hold, plan_pull, plan_push
from vla_rl.sim.libero.expert.joints import MovingPart
from vla_rl.sim.libero.expert.motion import DOWN, funnel, straight, turn_to
from vla_rl.sim.libero.expert.scene_view import SceneView, highest_on_the_way
from vla_rl.sim.libero.expert.skills import CLOSE, OPEN, Command, Skill
from vla_rl.sim.libero.expert.style import PLAIN, Style

LEAD = 0.06
"""How far the target runs ahead on the path, m."""
TURN_LEAD = 0.35
"""The same for a knob, rad."""
MARGIN = 0.02
CLOSING_STEPS, OPENING_STEPS = 14, 10
BEYOND_STEPS, BEYOND_STEPS_OF_A_DOOR = 5, 20
"""Control steps that the hand goes on once the part is far enough: a door follows the hand back a little at the release."""
STUCK_STEPS = 30
"""Control steps without progress after which another hold is tried."""
PROGRESS = 0.004
"""Share of a joint's range that counts as progress."""
RETREAT = 0.1
"""m that the hand withdraws from a handle."""
RETREAT_STEPS = 25
APPROACH_STEPS = 120
LOST = 0.035
"""Distance of hand and hold, m, at which the hold counts as slipped."""


class JointManeuver:
    """Brings a moving part to one end of its range."""

    def __init__(self, part: MovingPart, opens: bool, turns: bool, reached: Callable[[], bool], style: Style = PLAIN) -> None:
        """`opens` says towards which end, `turns` that the part is a knob; `reached` tells when it is far enough."""
        self._part, self._opens, self._turns, self._reached = part, opens, turns, reached
        self._style = style
        self._stage: Callable[[SceneView], Command] = self._line
        self._skill = Skill.REACH
        self._hold: Hold | None = None
        self._failed: list[Hold] = []
        self._since = 0
        self._best = 0.0
        self._on_line = False
        self._beyond = 0
        self.done = False

    @property
    def skill(self) -> Skill:
        return self._skill

    def act(self, scene: SceneView) -> Command:
        self._since += 1
        return self._stage(scene)

    # -- stages ------------------------------------------------------------------------------------------------------
    def _line(self, scene: SceneView) -> Command:
        """Get to the start of the straight approach from above, then along it to the hold."""
        if self._hold is None or self._since > APPROACH_STEPS:
            if self._hold is not None:
                self._failed.append(self._hold)
            self._hold = self._plan(scene)
            self._since, self._on_line = 1, False
        hold = self._hold
        self._skill = Skill.REACH
        grip = scene.grip_position
        target, rotation = hold.now(scene, self._part)
        start = target + (hold.start - hold.position)
        turn, off = turn_to(scene.grip_rotation, rotation, tolerance=0.06)
        gripper = CLOSE if hold.pushes else OPEN
        if not self._on_line:
            below = max(lowest_point(rotation, OPEN_HALF), lowest_point(DOWN, OPEN_HALF))
            top = highest_on_the_way(
                scene, grip, start, half_width=0.08 + self._style.aside(float(np.linalg.norm((start - grip)[:2])))
            )
            hover = max(min(top + below + MARGIN + self._style.height, scene.ceiling(grip[:2])), start[2])
            waiting = start if off < 0.3 else np.array([*start[:2], max(start[2], hover)])
            command, arrived = funnel(grip, waiting, hover, radius=0.03, style=self._style)
            self._on_line = arrived and off < 0.12
            return Command(command, turn, gripper)
        if hold.pushes:
            self._enter(self._follow)
            return self._follow(scene)
        command, arrived = straight(grip, start, target, self._style)
        if arrived:
            self._enter(self._close)
        return Command(command, turn, gripper)

    def _close(self, scene: SceneView) -> Command:
        self._skill = Skill.GRASP
        if self._since > CLOSING_STEPS:
            self._enter(self._follow)
        return Command(np.zeros(3), np.zeros(3), CLOSE)

    def _follow(self, scene: SceneView) -> Command:
        assert self._hold is not None
        part, hold = self._part, self._hold
        self._skill = Skill.PUSH if hold.pushes else Skill.TURN if self._turns else Skill.PULL
        openness = part.openness(scene)
        progress = openness if self._opens else 1.0 - openness
        if progress > self._best + PROGRESS:
            self._best, self._since = progress, 0
        here, _ = hold.now(scene, part)
        slipped = not hold.pushes and np.linalg.norm(here - scene.grip_position) > LOST
        self._beyond = self._beyond + 1 if self._reached() else 0
        swings = not (part.is_slide or self._turns)
        enough = self._beyond > (BEYOND_STEPS_OF_A_DOOR if swings else BEYOND_STEPS)
        if enough or self._since > STUCK_STEPS or slipped:
            if not self._reached():
                self._failed.append(hold)
            self._enter(self._release)
            return Command(np.zeros(3), np.zeros(3), CLOSE if hold.pushes else OPEN)
        target, rotation = hold.now(scene, part, self._lead(scene, here))
        command = straight(scene.grip_position, target, target, self._style)[0]
        turn, _ = turn_to(scene.grip_rotation, rotation, tolerance=0.1 if part.is_slide else 0.02)
        return Command(command, turn, CLOSE)

    def _lead(self, scene: SceneView, point: Float64[np.ndarray, "3"]) -> float:
        """How far ahead in the joint's own unit, with its sign."""
        part = self._part
        size = LEAD
        if not part.is_slide:
            lever = float(np.linalg.norm((point - scene.data.xanchor[part.joint])[:2]))
            size = TURN_LEAD if self._turns else LEAD / max(lever, 0.05)
        towards = part.opened - part.closed if self._opens else part.closed - part.opened
        return float(np.sign(towards)) * size

    def _release(self, scene: SceneView) -> Command:
        self._skill = Skill.RELEASE
        assert self._hold is not None
        if self._hold.pushes or self._since > OPENING_STEPS:
            self._enter(self._withdraw)
        return Command(np.zeros(3), np.zeros(3), CLOSE if self._hold.pushes else OPEN)

    def _withdraw(self, scene: SceneView) -> Command:
        """Back along the approach, or away from what was pushed; then up."""
        assert self._hold is not None
        self._skill = Skill.RETREAT
        here, rotation = self._hold.now(scene, self._part)
        away = -rotation[:, 2]
        if self._hold.pushes:
            away = self._part.opening_direction(scene, here) + np.array([0.0, 0.0, 0.3])
        gone = float((scene.grip_position - here) @ away / np.linalg.norm(away))
        if gone > (0.04 if self._hold.pushes else RETREAT) or self._since > RETREAT_STEPS:
            self.done = self._reached()
            self._hold = None
            self._best = 0.0
            self._enter(self._line)
        return Command(0.6 * away / np.linalg.norm(away), np.zeros(3), CLOSE if self._skill is Skill.PUSH else OPEN)

    # -- plans -------------------------------------------------------------------------------------------------------
    def _enter(self, stage: Callable[[SceneView], Command]) -> None:
        self._stage = stage
        self._since = 0

    def _plan(self, scene: SceneView) -> Hold:
        pushes = not self._opens and not self._turns
        return (plan_push if pushes else plan_pull)(scene, self._part, self._failed)
