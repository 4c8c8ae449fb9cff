"""Tasks of any simulator's suites, by suite name; loads no simulator."""

from __future__ import annotations

from typing import Protocol

from vla_rl.sim.robotwin import tasks as robotwin


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def max_steps(self) -> int: ...


def suite_tasks(suite: str) -> list[Task]:
    """All tasks of a suite, by id. Raises `SimError` for a suite that does not exist."""
    if suite == robotwin.SUITE:
        return list(robotwin.suite_tasks(suite))
    from vla_rl.sim.libero import tasks as libero

    return list(libero.suite_tasks(suite))


def find_task(suite: str, task_id: int) -> Task:
    """Raises `SimError` for a suite or task that does not exist."""
    if suite == robotwin.SUITE:
        return robotwin.find_task(suite, task_id)
    from vla_rl.sim.libero import tasks as libero

    return libero.find_task(suite, task_id)


def task_label(suite: str, task_id: int, instruction: str) -> str:
    """What a table calls a task: its instruction; the name of RoboTwin's, whose instruction is another one in each episode."""
    return robotwin.find_task(suite, task_id).name if suite == robotwin.SUITE else instruction
