"""RoboTwin 2.0's tasks: names, step limits, and which of them need no object meshes.

Written down here, so that configurations are checked without the simulator; a test compares them with the runtime's files.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.sim.base import SimError

SUITE = "robotwin"
STEP_LIMITS = {
    "adjust_bottle": 400,
    "beat_block_hammer": 400,
    "blocks_ranking_rgb": 1200,
    "blocks_ranking_size": 1200,
    "click_alarmclock": 400,
    "click_bell": 400,
    "dump_bin_bigbin": 600,
    "grab_roller": 400,
    "handover_block": 800,
    "handover_mic": 600,
    "hanging_mug": 900,
    "lift_pot": 400,
    "move_can_pot": 400,
    "move_pillbottle_pad": 400,
    "move_playingcard_away": 400,
    "move_stapler_pad": 400,
    "open_laptop": 700,
    "open_microwave": 1500,
    "pick_diverse_bottles": 400,
    "pick_dual_bottles": 400,
    "place_a2b_left": 400,
    "place_a2b_right": 400,
    "place_bread_basket": 700,
    "place_bread_skillet": 500,
    "place_burger_fries": 500,
    "place_can_basket": 700,
    "place_cans_plasticbox": 800,
    "place_container_plate": 400,
    "place_dual_shoes": 600,
    "place_empty_cup": 500,
    "place_fan": 400,
    "place_mouse_pad": 400,
    "place_object_basket": 700,
    "place_object_scale": 400,
    "place_object_stand": 400,
    "place_phone_stand": 400,
    "place_shoe": 500,
    "press_stapler": 400,
    "put_bottles_dustbin": 1700,
    "put_object_cabinet": 700,
    "rotate_qrcode": 400,
    "scan_object": 500,
    "shake_bottle": 700,
    "shake_bottle_horizontally": 700,
    "stack_blocks_three": 1200,
    "stack_blocks_two": 800,
    "stack_bowls_three": 1200,
    "stack_bowls_two": 900,
    "stamp_seal": 400,
    "turn_switch": 400,
}
"""Low-level actions until an episode is truncated, by task; a task's id is its place in this list."""
MESH_FREE = ("blocks_ranking_rgb", "blocks_ranking_size", "handover_block", "stack_blocks_three", "stack_blocks_two")
"""Tasks whose objects are boxes: the lite profile runs these."""


@dataclass(frozen=True)
class RoboTwinTask:
    id: int
    name: str

    @property
    def max_steps(self) -> int:
        return STEP_LIMITS[self.name]


def suite_tasks(suite: str) -> list[RoboTwinTask]:
    """All tasks, by id. Raises `SimError` for a suite that is not RoboTwin's."""
    if suite != SUITE:
        raise SimError(
            f"RoboTwin has the one suite {SUITE!r}, not {suite!r}; its {len(STEP_LIMITS)} tasks are told apart by task_ids"
        )
    return [RoboTwinTask(number, name) for number, name in enumerate(STEP_LIMITS)]


def find_task(suite: str, task_id: int) -> RoboTwinTask:
    """Raises `SimError` for a suite or task that does not exist."""
    tasks = suite_tasks(suite)
    if not 0 <= task_id < len(tasks):
        raise SimError(f"RoboTwin has tasks 0 to {len(tasks) - 1}, not {task_id}")
    return tasks[task_id]


def task_named(name: str) -> RoboTwinTask:
    """Raises `SimError` for a name that is none of RoboTwin's."""
    if name not in STEP_LIMITS:
        raise SimError(f"RoboTwin has no task {name!r}; it has: {', '.join(STEP_LIMITS)}")
    return suite_tasks(SUITE)[list(STEP_LIMITS).index(name)]
