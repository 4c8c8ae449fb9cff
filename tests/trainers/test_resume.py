"""A run that is killed at any instant continues, bit for bit, as if nothing had happened."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.metrics import read_metrics

SCRIPT = Path(__file__).parent / "pendulum_run.py"
TIMED = ("time/", "speed/")


# A curriculum that learns from all statistics: what it draws depends on every earlier round.
CURRICULUM = ("curriculum.name=dump", "task.shipped_states=0.5")


def start(root: Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(root), name, *CURRICULUM]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(directory: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, dict[str, float]]]]:
    """Weights of the last checkpoint, and every metric that does not measure time."""
    checkpoint = latest_checkpoint(directory / "checkpoints" / "rl")
    assert checkpoint is not None and checkpoint.name == "step_000008"
    records = [
        (record["step"], {k: v for k, v in record["values"].items() if not k.startswith(TIMED)})
        for record in read_metrics(directory)
    ]
    return load_file(checkpoint / "policy" / "model.safetensors"), records


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = start(tmp_path, "whole")
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output.decode()

    rng = np.random.default_rng(int(time.time()))  # other instants in every run of the test
    kills = 0
    while True:
        process = start(tmp_path, "killed")
        metrics = tmp_path / "killed" / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        if kills < 3:
            # Let it make some progress first, then strike at any instant of an iteration.
            while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
                time.sleep(0.02)
            time.sleep(float(rng.uniform(0, 0.8)))
            process.kill()
            process.communicate()
            kills += 1
            continue
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output.decode()
        break

    weights, records = finished(tmp_path / "whole")
    weights_again, records_again = finished(tmp_path / "killed")
    assert [step for step, _ in records] == list(range(1, 9))
    assert records_again == records
    for name, value in weights.items():
        np.testing.assert_array_equal(weights_again[name], value, err_msg=name)
