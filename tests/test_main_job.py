"""The main job on real LIBERO, as short as it goes: every stage, every file, and a second call that has nothing to do."""

import json
from pathlib import Path

from vla_rl.config_files import load_config
from vla_rl.metrics import read_metrics
from vla_rl.policies import load_policy
from vla_rl.trainers import pipeline

ROOT = Path(__file__).parents[1]


def test_the_main_job_from_demonstrations_to_a_report(tmp_path: Path) -> None:
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        [
            f"run.root={tmp_path}",
            "run.threads=1",
            "sim.num_envs=2",
            "demonstrations.episodes_per_task=2",
            "sft.steps=6",
            "sft.log_every=3",
            "sft.batch_size=8",
            "rl.iterations=2",
            "rl.episodes_per_iteration=2",
            "rl.warmup_iterations=1",
            "evaluation.episodes=2",
            "evaluation.every=1",
            "evaluation.interim_episodes=1",
            "evaluation.videos=1",
        ],
    )
    report = pipeline.train(config)

    run = tmp_path / config.run.name
    assert report == run / "report.html" and report.stat().st_size > 10_000
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        assert (run / name).exists(), name
    records = read_metrics(run)
    assert [(r["phase"], r["step"]) for r in records] == [("sft", 3), ("sft", 6), ("rl", 1), ("rl", 2)]
    first = records[2]["values"]
    assert first["rollout/episodes"] == 2
    # The warm-up round trains the critic alone; only the second one moves the policy.
    assert "policy/ratio_mean" not in first and "policy/ratio_mean" in records[3]["values"]
    for part in ("simulation", "rendering", "inference", "learning"):
        assert first[f"time/{part}"] > 0
    assert first["speed/env_steps_per_s"] > first["speed/turns_per_s"] > 0

    start, final = (json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("start", "final"))
    assert [e["spec"] for e in start["episodes"]] == [e["spec"] for e in final["episodes"]]
    assert [e["spec"]["init_state_id"] for e in start["episodes"]] == [40, 41]
    assert (start["policy_version"], final["policy_version"]) == (0, 1)
    assert list((run / "videos").glob("*.mp4"))
    assert load_policy(run).version == 1

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert pipeline.train(config) == report
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before, "a finished run is left as it is"
