"""Real small studies on the pendulum: what is killed is resumed with the same result, starts are shared, failures are told."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from page_reader import Page
from pendulum_run import SETTINGS
from pendulum_worker import WORKER
from safetensors.numpy import load_file

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config import ConfigError
from vla_rl.metrics import read_metrics
from vla_rl.run import RunError
from vla_rl.study import Study, load_study, run_study, write_comparison
from vla_rl.study.runner import share_evaluation
from vla_rl.trainers.pipeline import check_settings

TIMED = ("time/", "speed/")
SMALL = {
    "task.shipped_states": 0.5,
    "rl.iterations": 3,
    "rl.episodes_per_iteration": 4,
    "rl.warmup_iterations": 1,
    "evaluation.episodes": 2,
    "evaluation.videos": 0,
    "evaluation.samples": 2,
    "evaluation.sample_states": 2,
    "evaluation.temperature": 1.0,
}


def write_study(folder: Path, name: str, **values: Any) -> Path:
    settings = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in SETTINGS)}
    record = {
        "name": name,
        "root": str(folder),
        "settings": settings | SMALL,
        "variants": {"cool": {"rl.temperature": 0.8}, "dump": {"curriculum.name": "dump", "task.shipped_states": 0.5}},
        **values,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    return path


def outcome(run: Path) -> tuple[dict[str, np.ndarray], list[Any], list[Any]]:
    """Weights of the last checkpoint, metrics that do not measure time, and what was evaluated."""
    checkpoint = latest_checkpoint(run / "checkpoints" / "rl")
    assert checkpoint is not None
    metrics = [
        (record["step"], {k: v for k, v in record["values"].items() if not k.startswith(TIMED)}) for record in read_metrics(run)
    ]
    evaluations = [
        {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        for folder in ("evaluation", "pass_at_k")
        for path in sorted((run / folder).glob("*.json"))
    ]
    return load_file(checkpoint / "policy" / "model.safetensors"), metrics, evaluations


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that ran through."""
    study = load_study(write_study(tmp_path_factory.mktemp("studies"), "whole", at_once=2))
    assert run_study(study, WORKER, check_settings) == []
    return study


def test_every_run_is_a_run_directory_with_its_evaluations(whole: Study) -> None:
    names = {path.name for path in whole.directory.iterdir()}
    start = whole.jobs[0]
    assert {"study.yaml", "study.html", "logs", "cool_seed0", "dump_seed0", start.name} <= names
    for run in ("cool_seed0", "dump_seed0"):
        assert (whole.directory / run / "report.html").exists()
        for folder in ("evaluation", "pass_at_k"):
            assert {path.stem for path in (whole.directory / run / folder).glob("*.json")} == {"start", "final"}
        assert len([r for r in read_metrics(whole.directory / run) if r["phase"] == "rl"]) == 3


def test_the_start_is_made_once_and_its_evaluation_is_shared(whole: Study) -> None:
    start = whole.jobs[0].directory
    assert latest_checkpoint(start / "checkpoints" / "sft") is not None
    for run in ("cool_seed0", "dump_seed0"):
        assert not (whole.directory / run / "checkpoints" / "sft").exists()
        for file in ("evaluation/start.json", "pass_at_k/start.json"):
            assert (whole.directory / run / file).read_bytes() == (start / file).read_bytes()


def test_the_page_shows_every_run(whole: Study) -> None:
    page = Page(whole.directory / "study.html")
    assert page.open == []
    for words in ("2 of 2 runs are complete", "cool_seed0", "dump_seed0", "rl.temperature=0.8", "Pass@k", "3 of 3"):
        assert words in page.text, words
    curve = page.curve("curve-study-rollouts-episodes")
    records = [r["values"] for r in read_metrics(whole.directory / "cool_seed0") if r["phase"] == "rl"]
    assert json.loads(curve["data-x"] or "") == [4, 8, 12]
    assert json.loads(curve["data-y"] or "") == [r["rollout/success"] for r in records]


def test_a_finished_study_is_left_as_it_is(whole: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.directory.rglob("*.json")}
    assert run_study(whole, ["false"], check_settings) == []
    assert {path: path.stat().st_mtime_ns for path in whole.directory.rglob("*.json")} == before


def test_a_study_killed_in_the_middle_ends_like_one_that_was_not(whole: Study, tmp_path: Path) -> None:
    path = write_study(tmp_path, "whole", at_once=2)
    process = subprocess.Popen([*WORKER, "study", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = tmp_path / "whole" / "dump_seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(float(np.random.default_rng(int(time.time())).uniform(0, 0.5)))  # another instant in every run of the test
    process.kill()
    process.communicate()
    assert "of 2 runs are complete" in Page(write_comparison(load_study(path))).text
    assert run_study(load_study(path), WORKER, check_settings) == []
    for run in ("cool_seed0", "dump_seed0"):
        weights, records, evaluations = outcome(whole.directory / run)
        weights_again, records_again, evaluations_again = outcome(tmp_path / "whole" / run)
        assert records_again == records and evaluations_again == evaluations
        for name, value in weights.items():
            np.testing.assert_array_equal(weights_again[name], value, err_msg=name)


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    # A stand-in for the worker: it makes every start and fails in one variant.
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, pathlib\n"
        "name = pathlib.Path(sys.argv[-1]).stem\n"
        "if name.startswith('bad'):\n"
        "    sys.exit('error: the hand fell off')\n"
        'counts = \'{"total": {"successes": 1, "episodes": 2}, "episodes": [], "states": []}\'\n'
        "for folder in ('evaluation', 'pass_at_k'):\n"
        "    path = pathlib.Path(sys.argv[-1]).parents[1] / name / folder\n"
        "    path.mkdir(parents=True, exist_ok=True)\n"
        "    (path / ('start.json' if 'sft' in sys.argv else 'final.json')).write_text(counts)\n"
    )
    variants = {"bad": {"rl.gamma": 0.5}, "good": {"rl.gamma": 0.6}}
    study = load_study(write_study(tmp_path, "s", variants=variants))
    assert run_study(study, (sys.executable, str(script)), check_settings) == ["bad_seed0"]
    text = Page(study.directory / "study.html").text
    assert "failed error: the hand fell off" in text and "1 of 2 runs are complete" in text
    assert run_study(study, ("false",), check_settings) == ["bad_seed0"], "it is tried again, and what is finished is not"


def test_runs_whose_start_fails_are_not_run(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, "s"))
    assert run_study(study, ("false",), check_settings) == [study.jobs[0].name, "cool_seed0", "dump_seed0"]
    with pytest.raises(RunError, match="nothing in .* yet"):
        write_comparison(load_study(write_study(tmp_path, "other")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objective.name": "gppo"}, "variant 'late': objective.name is 'gppo'"),
        ({"objective.name": "grpo"}, "variant 'late': .*set rl.group_size=8"),
        ({"objective.regularisers.entrpy": 0.1}, "variant 'late': there is no regulariser 'entrpy'"),
        ({"policy.checkpoint": "/nowhere"}, "variant 'late': policy.checkpoint is /nowhere, which does not exist"),
        ({"demonstrations.path": "/nowhere"}, "variant 'late': demonstrations.path is /nowhere, which does not exist"),
    ],
)
def test_a_variant_that_cannot_run_stops_the_study_before_anything_starts(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    study = load_study(write_study(tmp_path, "s", variants={"early": {}, "late": setting}))
    with pytest.raises(ConfigError, match=message):
        run_study(study, ("false",), check_settings)
    assert not study.directory.exists()


def test_the_end_of_a_finished_run_cannot_be_moved(whole: Study) -> None:
    """The page would say of it that a budget was over that it never had."""
    longer = load_study(write_study(whole.directory.parent, "whole", minutes=60))
    with pytest.raises(RunError, match=r"cool_seed0 was made with other values of run\.max_minutes; give the study another name"):
        run_study(longer, WORKER, check_settings)


def test_the_start_s_samples_are_shared_where_there_are_as_many(tmp_path: Path, whole: Study) -> None:
    start, run = whole.jobs[0], whole.jobs[1]
    more = run.config.evaluation.model_copy(update={"samples": 4})
    run_config = run.config.run.model_copy(update={"root": tmp_path})
    share_evaluation(replace(run, config=run.config.model_copy(update={"evaluation": more, "run": run_config})), start)
    assert (tmp_path / run.name / "evaluation" / "start.json").exists()
    assert not (tmp_path / run.name / "pass_at_k" / "start.json").exists()


def test_other_settings_in_the_same_folder_are_refused(whole: Study) -> None:
    folder = whole.directory.parent
    variants = {"cool": {"rl.temperature": 0.9}, "dump": {"curriculum.name": "dump", "task.shipped_states": 0.5}}
    changed = load_study(write_study(folder, "whole", variants=variants))
    with pytest.raises(RunError, match=r"cool_seed0 was made with other values of rl\.temperature; give the study another name"):
        run_study(changed, WORKER, check_settings)
