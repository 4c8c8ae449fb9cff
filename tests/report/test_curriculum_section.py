"""The heat maps of what was drawn and how success moved."""

from pathlib import Path

import pytest
from page_reader import Page

from vla_rl.metrics import MetricsLogger
from vla_rl.report import write_report
from vla_rl.report.curriculum_section import MAX_BINS, MAX_TASKS, curriculum_maps
from vla_rl.report.heat_map import HeatMap
from vla_rl.report.run_files import read_run


def log(run: Path, rounds: list[dict[str, tuple[int, int]]]) -> None:
    """Rounds of source -> (episodes, successes)."""
    with MetricsLogger(run, tensorboard=False) as metrics:
        for step, drawn in enumerate(rounds, start=1):
            values: dict[str, float] = {"curriculum/effective_sources": 3.0}
            for source, (episodes, successes) in drawn.items():
                values |= {f"curriculum/episodes/{source}": episodes, f"curriculum/successes/{source}": successes}
            metrics.log(step, values, "rl")


ROUNDS = [
    {"0/3": (2, 0), "0/11": (1, 1), "0/sampled": (4, 1)},
    {"0/3": (4, 1), "0/sampled": (2, 2)},
    {"0/3": (1, 1), "0/11": (1, 0), "0/sampled": (4, 4)},
    {"0/11": (2, 2), "0/sampled": (4, 4)},
]


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, HeatMap]:
    log(tmp_path, ROUNDS)
    return {m.id: m for m in curriculum_maps(read_run(tmp_path))[0]["maps"]}


def shades(found: HeatMap) -> dict[str, list[float | None]]:
    return {label: [None if cell is None else cell.shade for cell in cells] for label, cells in found.rows}


def test_over_the_rounds(maps: dict[str, HeatMap]) -> None:
    # At most 4 episodes in a cell. Shipped states: 3, 4, 2 and 2 episodes with 1, 1, 1 and 2 successes.
    assert shades(maps["map-rl-rounds-episodes"]) == {
        "task 0, shipped": [3 / 4, 1, 1 / 2, 1 / 2],
        "task 0, sampled": [1, 1 / 2, 1, 1],
    }
    assert shades(maps["map-rl-rounds-success"]) == {
        "task 0, shipped": [1 / 3, 1 / 4, 1 / 2, 1],
        "task 0, sampled": [1 / 4, 1, 1, 1],
    }


def test_over_initial_states_before_and_after(maps: dict[str, HeatMap]) -> None:
    # States 3 and 11 have 7 and 4 episodes in all.
    assert [tick.label for tick in maps["map-rl-states-episodes"].columns] == ["3", "11"]
    assert shades(maps["map-rl-states-episodes"]) == {"task 0": [1, 4 / 7]}
    assert shades(maps["map-rl-states-first-half-success"]) == {"task 0": [1 / 6, 1]}
    assert shades(maps["map-rl-states-last-half-success"]) == {"task 0": [1, 2 / 3]}


def test_a_cell_says_its_numbers(maps: dict[str, HeatMap]) -> None:
    cell = maps["map-rl-rounds-success"].rows[0][1][1]
    assert cell is not None and cell.text == "task 0, shipped, iteration 2: 1 of 4 episodes succeeded"


def test_what_was_never_drawn_is_empty_and_many_rounds_share_columns(tmp_path: Path) -> None:
    log(tmp_path, [{f"{i % 25}/{i % 5}": (1, 1)} for i in range(100)])
    found = curriculum_maps(read_run(tmp_path))[0]
    assert found["left_out"] == 25 - MAX_TASKS
    rounds, states = found["maps"][0], found["maps"][2]
    assert len(rounds.rows) == MAX_TASKS and len(rounds.rows[0][1]) <= MAX_BINS
    # Task 0 comes in rounds 1, 26, 51 and 76, always in state 0.
    assert [cell is not None for cell in states.rows[0][1]] == [True, False, False, False, False]
    assert sum(cell is not None for cell in rounds.rows[0][1]) == 4


def test_the_page_has_them_and_no_chart_for_each_source(tmp_path: Path) -> None:
    log(tmp_path, ROUNDS)
    page = Page(write_report(tmp_path))
    assert page.open == [] and "Sources in effect" in page.text and "Curriculum" in page.text
    assert any(a.get("title") == "task 0, initial state 3: 2 of 7 episodes succeeded" for a in page.all("i"))
    keys = [a.get("data-key") for a in page.all("path")]
    assert "curriculum/effective_sources" in keys and not any("episodes/0" in (key or "") for key in keys)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_run_without_curriculum_has_no_section(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(1, {"rollout/success": 0.5, "rollout/episodes": 2}, "rl")
    assert 'id="curriculum"' not in write_report(tmp_path).read_text()
