"""What the page of a study says, for studies that are finished, cut, failed and not begun. No policy was trained for them."""

import json
from pathlib import Path

import pytest
from page_reader import Page

from vla_rl.evaluate import wilson_interval
from vla_rl.metrics import MetricsLogger
from vla_rl.report.differences import independent_difference
from vla_rl.report.pass_at_k_section import estimates
from vla_rl.report.study_page import read_study, render_study, write_study_page
from vla_rl.report.study_results import StudyRun, failure_line, mean_curve, read_result

SETTINGS = {"ppo": {}, "grpo": {"objective.name": "grpo<b>"}}


def write_run(run: Path, rounds: int, successes: int, minutes: float = 1.0, final: bool = True) -> None:
    """Rounds of 4 episodes with `successes` each, that take `minutes`; evaluations of 10 episodes; pass@k of two states."""
    run.mkdir(parents=True)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, rounds + 1):
            values = {"rollout/episodes": 4, "rollout/success": successes / 4, "rollout/total_episodes": 4 * step}
            record = {"step": step, "phase": "rl", "wall_time": 60 * minutes * step, "values": values}
            file.write(json.dumps(record) + "\n")
    for name, step, good in [("start", 0, 2), *([("final", rounds, 2 * successes)] if final else [])]:
        for folder in ("evaluation", "pass_at_k"):
            (run / folder).mkdir(exist_ok=True)
        record = {"name": name, "step": step, "total": {"successes": good, "episodes": 10}, "mode": "greedy"}
        (run / "evaluation" / f"{name}.json").write_text(json.dumps(record))
        states = [{"successes": 1, "episodes": 4}, {"successes": 3 if name == "final" else 1, "episodes": 4}]
        (run / "pass_at_k" / f"{name}.json").write_text(json.dumps({"states": states}))


def plan(folder: Path, variant: str, seed: int, rounds: int = 3) -> StudyRun:
    name = f"{variant}_seed{seed}"
    return StudyRun(variant, seed, folder / name, rounds, 2.5, None, folder / "logs" / f"{name}.log")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of ppo; one of grpo that was cut after two rounds, and one that failed."""
    write_run(tmp_path / "ppo_seed0", 3, 2)
    write_run(tmp_path / "ppo_seed1", 3, 4, minutes=0.5)
    write_run(tmp_path / "grpo_seed0", 2, 3, minutes=1.5)
    write_run(tmp_path / "grpo_seed1", 1, 1, final=False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "grpo_seed1.log").write_text(f"hello\nerror: no more hands\n\n{failure_line(2)}\n")
    return tmp_path


def runs(folder: Path) -> list[StudyRun]:
    return [plan(folder, variant, seed) for seed in (0, 1) for variant in SETTINGS]


def test_the_mean_of_curves_is_interpolated_where_all_of_them_reach() -> None:
    # At 2 the second is halfway from 1 to 3; beyond 3 and before 1 one of them is missing.
    found = mean_curve([[(0, 0.0), (2, 0.4), (4, 0.6)], [(1, 0.2), (3, 1.0)]])
    assert found == [(1, pytest.approx(0.2)), (2, pytest.approx(0.5)), (3, pytest.approx(0.75))]
    assert mean_curve([[(1, 0.5), (2, 0.7)]]) == [(1, 0.5), (2, 0.7)]
    assert mean_curve([]) == [] and mean_curve([[(5, 0.1)], [(6, 0.2)]]) == []
    assert mean_curve([[(5, 0.1)], [(5, 0.3)]]) == [(5, pytest.approx(0.2))]


def test_the_state_of_each_run(folder: Path) -> None:
    states = {(r.variant, r.seed): read_result(r) for r in [*runs(folder), plan(folder, "ppo", 2)]}
    assert states["ppo", 0].status == "finished" and states["ppo", 0].reason == ""
    assert states["grpo", 0].status == "cut"
    assert states["grpo", 0].reason == "2 of 3 rounds: its 2.5 minutes were over after 3.0"
    assert (states["grpo", 1].status, states["grpo", 1].reason) == ("failed", "error: no more hands")
    assert states["ppo", 2].status == "not begun"
    (folder / "logs" / "grpo_seed1.log").write_text("error: a line that some part of the run printed\n")
    assert read_result(plan(folder, "grpo", 1)).status == "under way"
    assert (states["ppo", 0].rounds, states["ppo", 0].episodes, states["ppo", 0].minutes) == (3, 12, 3.0)


def test_a_budget_of_episodes_is_no_cut(folder: Path) -> None:
    run = StudyRun("grpo", 0, folder / "grpo_seed0", 3, None, 8, folder / "none.log")
    assert (read_result(run).status, read_result(run).reason) == ("finished", "stopped at its 8 episodes")


def test_a_run_without_anything_to_learn_from_says_so(folder: Path) -> None:
    (folder / "grpo_seed0" / "stopped.txt").write_text("no group had both")
    result = read_result(plan(folder, "grpo", 0))
    assert (result.status, result.reason) == ("stopped", "2 of 3 rounds: no group had both")
    page = Page(write_study_page(folder / "study.html", "s", "", read_study(runs(folder), SETTINGS)))
    assert "3 of 4 runs are complete." in page.text and "no group had both" in page.text


def test_curves_stand_over_episodes_and_minutes(folder: Path) -> None:
    result = read_result(plan(folder, "grpo", 0))
    assert result.rollouts == {"episodes": [(4, 0.75), (8, 0.75)], "minutes": [(1.5, 0.75), (3.0, 0.75)]}
    assert result.evaluations == {"episodes": [(0, 0.2), (8, 0.6)], "minutes": [(0.0, 0.2), (3.0, 0.6)]}


def test_the_page(folder: Path) -> None:
    variants = read_study(runs(folder), SETTINGS)
    page = Page(write_study_page(folder / "study.html", "ppo & grpo", "name: <script>", variants))
    assert page.open == [] and len(page.all("script")) == 1
    # ppo: 4 and 8 of 10, together 12 of 20; grpo: 6 of 10 in the one seed that has an end.
    low, high = wilson_interval(12, 20)
    for words in (
        "3 of 4 runs are complete, 1 of them cut short by the time budget.",
        "different numbers of finished seeds",
        f"60% 12/20 {100 * low:.1f}% – {100 * high:.1f}%",
        "seed 0: 40%",
        "seed 1: 80%",
        "1 more not finished",
        "objective.name=grpo<b>",
        "its 2.5 minutes were over after 3.0",
        "error: no more hands",
        "name: <script>",
    ):
        assert words in page.text, words
    # Compared with the first variant on seed 0, which both have: 4 and 6 of 10; with the start: 4 and 12 of 20, 2 and 6 of 10.
    assert f"+20.0 points {independent_difference((4, 10), (6, 10)).interval} seed 0 only" in page.text
    assert f"+40.0 points {independent_difference((4, 20), (12, 20)).interval}" in page.text
    assert f"+40.0 points {independent_difference((2, 10), (6, 10)).interval}" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)


def test_each_seed_is_drawn_thin_and_their_mean_thick(folder: Path) -> None:
    page = Page(write_study_page(folder / "study.html", "s", "", read_study(runs(folder), SETTINGS)))
    curves = {a["data-name"]: a for a in page.all("path") if (a.get("id") or "").startswith("curve-study-rollouts-minutes")}
    assert list(curves) == [
        "ppo, seed 0", "ppo, seed 1", "ppo (mean of 2 seeds)", "grpo, seed 0", "grpo, seed 1",
    ]  # fmt: skip
    # Minutes 1 to 1.5 are those that both seeds of ppo have: 2 and 4 of 4 successes.
    mean = curves["ppo (mean of 2 seeds)"]
    assert json.loads(mean["data-x"] or "") == [1.0, 1.5] and json.loads(mean["data-y"] or "") == [0.75, 0.75]


def test_pass_at_k_is_pooled_over_the_states_of_all_seeds(folder: Path) -> None:
    # Of 4 episodes 1 and 3 succeed. k = 1: 1/4, 3/4; k = 2: 1 - C(3,2)/C(4,2) = 1/2 and 1; k = 4: 1.
    found = estimates([json.loads((folder / "ppo_seed0" / "pass_at_k" / "final.json").read_text())])
    assert {k: v["rate"] for k, v in found.items()} == {1: pytest.approx(0.5), 2: pytest.approx(0.75), 4: 1.0}
    # The two states are 0.5 apart at k = 1: standard deviation 0.353553, of the mean 0.25; 1.96 x 0.25 = 0.49.
    assert (found[1]["low"], found[1]["high"]) == (pytest.approx(0.01), pytest.approx(0.99))
    page = Page(write_study_page(folder / "study.html", "s", "", read_study(runs(folder), SETTINGS)))
    start = next(a for a in page.all("path") if a.get("data-name") == "all variants, start")
    assert json.loads(start["data-y"] or "") == [0.25, 0.5, 1.0]
    assert "all variants start 25%" in page.text and "k = 4" in page.text


def test_a_study_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    html = render_study("s", "", read_study(runs(tmp_path), SETTINGS))
    assert "0 of 4 runs are complete" in html and "No run has recorded a round" in html and "under way or interrupted" in html
    assert "no seed of 2 has finished" in html


def test_a_run_without_totals_counts_its_rounds(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path / "ppo_seed0", tensorboard=False) as metrics:
        for step in (1, 2):
            metrics.log(step, {"rollout/episodes": 6, "rollout/success": 0.5}, "rl")
    assert read_result(plan(tmp_path, "ppo", 0)).episodes == 12
