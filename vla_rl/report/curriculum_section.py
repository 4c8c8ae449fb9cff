"""What a run's curriculum drew, and how success moved: by task over the rounds, and by initial state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.report.charts import slug
from vla_rl.report.heat_map import Cell, HeatMap, column_ticks
from vla_rl.report.run_files import RunFiles
from vla_rl.report.titles import phase_title, step_name

EPISODES, SUCCESSES = "curriculum/episodes/", "curriculum/successes/"
PER_SOURCE = (EPISODES, SUCCESSES)
"""Beginnings of the metrics that this section shows instead of a chart each."""
SAMPLED = "sampled"
MAX_TASKS = 20
MAX_BINS = 40


@dataclass(frozen=True)
class Draw:
    """The episodes of one source in one round."""

    task: int
    state: str
    step: int
    episodes: int
    successes: int


def curriculum_maps(files: RunFiles) -> list[dict[str, Any]]:
    """For each phase that drew episodes: its title, heat maps over rounds and over initial states, and tasks left out."""
    found = []
    for phase in files.series:
        draws = _draws(files, phase)
        tasks = sorted({draw.task for draw in draws})
        if not draws:
            continue
        shown = [draw for draw in draws if draw.task in tasks[:MAX_TASKS]]
        maps = [*_over_rounds(phase, shown), *_over_states(phase, shown)]
        found.append({"title": phase_title(phase), "maps": maps, "left_out": max(0, len(tasks) - MAX_TASKS)})
    return found


def _draws(files: RunFiles, phase: str) -> list[Draw]:
    draws = []
    for key, series in files.series[phase].items():
        task, _, state = key.removeprefix(EPISODES).partition("/")
        if not key.startswith(EPISODES) or not task.isdigit():
            continue
        good = files.get(phase, SUCCESSES + key.removeprefix(EPISODES))
        successes = dict(zip(good.steps, good.values, strict=True)) if good else {}
        for step, count in zip(series.steps, series.values, strict=True):
            if count:
                draws.append(Draw(int(task), state, step, round(count), round(successes.get(step) or 0)))
    return draws


def _over_rounds(phase: str, draws: Sequence[Draw]) -> list[HeatMap]:
    """Two rows a task: its shipped initial states together, and its sampled placements."""
    first, last = min(draw.step for draw in draws), max(draw.step for draw in draws)
    width = -(-(last - first + 1) // MAX_BINS)
    starts = list(range(first, last + 1, width))
    labels = [str(at) if width == 1 else f"{at}-{min(at + width - 1, last)}" for at in starts]
    groups: dict[tuple[int, bool], list[list[Draw]]] = {}
    for draw in draws:
        bins = groups.setdefault((draw.task, draw.state == SAMPLED), [[] for _ in starts])
        bins[(draw.step - first) // width].append(draw)
    rows = [(f"task {task}, {'sampled' if sampled else 'shipped'}", groups[task, sampled]) for task, sampled in sorted(groups)]
    name = step_name(phase)
    columns = [f"{name} {label}" for label in labels]
    return list(_pair(slug(phase, "rounds"), "", rows, columns, labels, name))


def _over_states(phase: str, draws: Sequence[Draw]) -> list[HeatMap]:
    """A row a task, a column a shipped state: episodes of all rounds, and success in the first and in the last half of them."""
    draws = [draw for draw in draws if draw.state != SAMPLED]
    states = sorted({draw.state for draw in draws}, key=lambda state: (len(state), state))
    if len(states) < 2:
        return []
    middle = (min(draw.step for draw in draws) + max(draw.step for draw in draws)) / 2
    halves = {
        "first half": [draw for draw in draws if draw.step <= middle],
        "last half": [draw for draw in draws if draw.step > middle],
    }
    columns = [f"initial state {state}" for state in states]
    maps = []
    for half, chosen in {"": draws, **halves}.items():
        cells: dict[int, list[list[Draw]]] = {draw.task: [[] for _ in states] for draw in draws}
        for draw in chosen:
            cells[draw.task][states.index(draw.state)].append(draw)
        rows = [(f"task {task}", cells[task]) for task in sorted(cells)]
        episodes, success = _pair(slug(phase, "states", half), half, rows, columns, states, "initial state")
        maps.append(success if half else episodes)
    return maps


def _pair(
    identity: str,
    when: str,
    rows: Iterable[tuple[str, list[list[Draw]]]],
    columns: Sequence[str],
    labels: Sequence[str],
    x_label: str,
) -> tuple[HeatMap, HeatMap]:
    """The same cells shaded by episodes and by success."""
    rows = list(rows)
    most = max((sum(d.episodes for d in cell) for _, cells in rows for cell in cells), default=0)

    def shaded(by_success: bool) -> list[tuple[str, list[Cell | None]]]:
        table = []
        for label, cells in rows:
            line: list[Cell | None] = []
            for column, cell in zip(columns, cells, strict=True):
                episodes, successes = sum(d.episodes for d in cell), sum(d.successes for d in cell)
                text = f"{label}, {column}: {successes} of {episodes} episodes succeeded"
                line.append(Cell(successes / episodes if by_success else episodes / most, text) if episodes else None)
            table.append((label, line))
        return table

    ticks = column_ticks(labels)
    drawn = HeatMap(f"map-{identity}-episodes", "Episodes drawn", f"darkest: {most}", shaded(False), ticks, x_label, style="c1")
    title = "Success" + (f", {when} of the rounds" if when else "")
    success = HeatMap(f"map-{identity}-success", title, "darkest: all succeeded", shaded(True), ticks, x_label, style="c2")
    return drawn, success
