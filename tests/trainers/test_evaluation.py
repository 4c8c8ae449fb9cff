"""Evaluations of a run are made once, and again where the run went on or other episodes are asked for."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pendulum_run import SETTINGS, TIME_LIMITS, pendulum_policy, pendulum_sim

from vla_rl.config_files import load_config
from vla_rl.run import Run
from vla_rl.trainers import evaluation
from vla_rl.trainers.pipeline import _name_of


def test_a_record_is_made_again_where_its_step_or_its_episodes_are_others(tmp_path: Path) -> None:
    written: list[Any] = []
    plans = [(3, 2, 2, 2), (3, 2, 2, 2), (5, 2, 2, 2), (5, 3, 2, 2), (5, 3, 3, 2), (5, 3, 3, 3)]
    with closing(pendulum_sim()) as sim:
        for step, *counts in plans:
            keys = ("episodes", "samples", "sample_states")
            overrides = [f"evaluation.{key}={count}" for key, count in zip(keys, counts, strict=True)]
            config = load_config(None, [*SETTINGS, f"run.root={tmp_path}", "run.name=a", "evaluation.videos=0", *overrides])
            with Run(config) as run:
                evaluation.evaluate_held_out(run, sim, pendulum_policy(), TIME_LIMITS[:1], "final", step)
            paths = [tmp_path / "a" / folder / "final.json" for folder in ("evaluation", "pass_at_k")]
            records = [json.loads(path.read_text()) for path in paths]
            assert [record["step"] for record in records] == [step, step]
            assert (len(records[0]["episodes"]), len(records[1]["states"])) == (counts[0], counts[2])
            assert {state["episodes"] for state in records[1]["states"]} == {counts[1]}
            written.append([path.stat().st_mtime_ns for path in paths])
    changed = [[a != b for a, b in zip(one, other, strict=True)] for one, other in zip(written, written[1:], strict=False)]
    assert changed == [[False, False], [True, True], [True, False], [False, True], [False, True]]


def test_a_video_that_cannot_be_written_loses_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such codec")

    monkeypatch.setattr(evaluation, "record_videos", fail)
    config = load_config(None, [*SETTINGS, f"run.root={tmp_path}", "run.name=a", "evaluation.episodes=2", "evaluation.videos=1"])
    with closing(pendulum_sim()) as sim, Run(config) as run, pytest.raises(RuntimeError, match="no such codec"):
        evaluation.evaluate_held_out(run, sim, pendulum_policy(), TIME_LIMITS[:1], "final", 3)
    assert json.loads((tmp_path / "a" / "evaluation" / "final.json").read_text())["total"]["episodes"] == 2


@pytest.mark.parametrize(
    ("tasks", "name"), [((4,), "4"), ((4, 5), "4_5"), ((0, 2, 9), "0_2_9"), (range(90), "0-89"), (range(3, 6), "3-5")]
)
def test_an_evaluation_is_named_after_its_tasks(tasks: Any, name: str) -> None:
    assert _name_of(tasks) == name


def test_many_scattered_tasks_have_a_short_name_of_their_own() -> None:
    names = {_name_of(range(start, 90, 2)) for start in (0, 1)}
    assert len(names) == 2 and all(len(name) < 40 for name in names)
