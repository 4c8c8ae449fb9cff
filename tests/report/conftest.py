"""A run directory with made-up numbers, for the tests of the report. No policy was trained for it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vla_rl.evaluate import wilson_interval
from vla_rl.metrics import MetricsLogger, describe_machine
from vla_rl.report import write_report
from vla_rl.video import outline, upscale, write_video

INSTRUCTIONS = {0: "put the <b>bowl</b> on the plate & wait", 1: 'open the "top" drawer'}


def count(successes: int, episodes: int) -> dict[str, float]:
    low, high = wilson_interval(successes, episodes)
    return {"successes": successes, "episodes": episodes, "rate": successes / episodes, "low": low, "high": high}


def square_video(path: Path, success: bool, seed: int) -> None:
    """A square that travels over a plane for 1.6 s."""
    rng = np.random.default_rng(seed)
    frames = np.full((16, 64, 64, 3), 40, np.uint8) + rng.integers(0, 60, (1, 64, 64, 3), dtype=np.uint8)
    for t, frame in enumerate(frames):
        frame[20:34, 2 + 3 * t : 16 + 3 * t] = (240, 190, 60)
    write_video(path, outline(upscale(frames, 128), success), fps=10)


def write_evaluation(run: Path, name: str, step: int, successes: tuple[int, int], filmed: int = 0) -> None:
    """Two tasks of 40 episodes; the first `filmed` successes and failures of task 0 have videos."""
    episodes = []
    for task, good in enumerate(successes):
        for i in range(40):
            index = i if i < good else i - good
            video = f"videos/{name}_{task}_{i:02d}.mp4" if task == 0 and index < filmed else None
            if video:
                square_video(run / video, i < good, seed=i)
            episodes.append(
                {
                    "spec": {"suite": "libero_object", "task_id": task, "init_state_id": i, "seed": 0},
                    "success": i < good,
                    "steps": 90 + i if i < good else 280,
                    "return": float(i < good),
                    "video": video,
                }
            )
    tasks = [
        {"suite": "libero_object", "task_id": task, "instruction": INSTRUCTIONS[task], **count(good, 40)}
        for task, good in enumerate(successes)
    ]
    total = count(sum(successes), 80)
    record = {
        "name": name, "step": step, "mode": "greedy", "tasks": tasks, "suites": [{"suite": "libero_object", **total}],
        "total": total, "episodes": episodes, "seconds": 61.5,
    }  # fmt: skip
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / f"{name}.json").write_text(json.dumps(record))


def log_metrics(run: Path, sft_steps: int, iterations: int) -> None:
    rng = np.random.default_rng(0)
    with MetricsLogger(run, tensorboard=False) as metrics:
        for step in range(20, 20 * sft_steps + 1, 20):
            loss = 5.5 * math.exp(-step / 400) + 0.6 + 0.05 * rng.normal()
            metrics.log(step, {"loss": loss, "accuracy": 1 - loss / 7, "learning_rate": 1e-3 * math.cos(step / 1500)}, "sft")
        for step in range(1, iterations + 1):
            rate = 0.3 + 0.55 / (1 + math.exp(-(step - 14) / 3))
            successes = int(rng.binomial(48, rate))
            metrics.log(
                step,
                {
                    "rollout/success": successes / 48, "rollout/successes": successes, "rollout/episodes": 48,
                    "rollout/steps_mean": 230 - 4 * step + 5 * rng.normal(),
                    "policy/loss": float("nan") if step == 7 else 0.02 * rng.normal(),
                    "policy/ratio_mean": 1 + 0.004 * rng.normal(), "policy/approx_kl": 0.002 + 0.001 * abs(rng.normal()),
                    "policy/clip_fraction": 0.05 + 0.02 * rng.random(), "policy/entropy": 2.1 * math.exp(-step / 40),
                    "value/loss": 0.2 * math.exp(-step / 8) + 0.01 * rng.random(),
                    "value/explained_variance": 0.9 - 0.9 * math.exp(-step / 5), "update/steps": 6,
                    "time/simulation": 7 + rng.random(), "time/rendering": 3 + rng.random(), "time/inference": 6 + rng.random(),
                    "time/learning": 9 + rng.random(), "time/other": 0.4, "speed/env_steps_per_s": 520 + 30 * rng.random(),
                    "speed/turns_per_s": 65 + 3 * rng.random(), "novel/metric<i>": step**2,
                },
                "rl",
            )  # fmt: skip


def example_run(directory: Path, sft_steps: int = 60, iterations: int = 30) -> Path:
    """A finished run: 60 records of fine-tuning, 30 iterations, 4 evaluations, 8 videos."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text("run:\n  name: </pre><script>alert(1)</script>\nrl:\n  iterations: 30\n")
    (directory / "environment.json").write_text(json.dumps(describe_machine()))
    log_metrics(directory, sft_steps, iterations)
    write_evaluation(directory, "start", 0, (12, 9), filmed=2)
    write_evaluation(directory, "iteration_000010", 10, (18, 15))
    write_evaluation(directory, "iteration_000020", 20, (31, 24))
    write_evaluation(directory, "final", 30, (37, 30), filmed=2)
    return directory


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example run with its report written."""
    run = example_run(tmp_path_factory.mktemp("report") / "finished <run>")
    write_report(run)
    return run
