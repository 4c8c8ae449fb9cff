"""Off-policy runs: they learn, they are judged on other episodes, and a killed one ends like one that was not."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vla_rl.algorithms.dsac_t import DsacT
from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config import ConfigError
from vla_rl.control_config import AlgorithmConfig, ControlConfig, OffPolicyConfig, load_experiment
from vla_rl.metrics import Stopwatch, read_metrics
from vla_rl.policies import PolicyError
from vla_rl.policies.best import best_policy, chosen_policy, keep_best
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.replay import ReplayBuffer
from vla_rl.report.run_files import read_run
from vla_rl.run import RunError
from vla_rl.sim.base import SimError
from vla_rl.sim.control import ControlStep
from vla_rl.trainers import control
from vla_rl.trainers.control_evaluation import run_control_episodes, soft_returns
from vla_rl.trainers.experience import Experience
from vla_rl.trainers.offpolicy import _round, _updates_due

SMALL = (
    "algorithm.hidden=[32, 32]",
    "algorithm.batch_size=64",
    "run.device=cpu",
    "run.threads=1",
    "sim.id=Pendulum-v1",
    "evaluation.episodes=2",
    "evaluation.every=2",
    "evaluation.bias_episodes=1",
)
RESUMED = (
    *SMALL,
    "sim.num_envs=2",
    "off_policy.env_steps=2400",
    "off_policy.random_steps=200",
    "off_policy.round_steps=200",
    "off_policy.checkpoint_every=2",
)


def config_of(root: Path, name: str, *overrides: str) -> ControlConfig:
    config = load_experiment(None, [f"run.root={root}", f"run.name={name}", *overrides])
    assert isinstance(config, ControlConfig)
    return config


def start(root: Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vla_rl.cli", "train", f"run.root={root}", f"run.name={name}", *RESUMED]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(directory: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, dict[str, float]]], list[list[Any]]]:
    """All tensors of the last checkpoint, every metric that does not measure time, and the returns of all evaluations."""
    checkpoint = latest_checkpoint(directory / "checkpoints" / "off_policy")
    assert checkpoint is not None and checkpoint.name == "step_002400"
    tensors = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        if path.name != "random.safetensors":  # the global generators, which training does not draw from
            tensors |= {f"{path.stem}/{name}": value for name, value in load_file(path).items()}
    records = [
        (record["step"], {k: v for k, v in record["values"].items() if not k.startswith(("time/", "speed/"))})
        for record in read_metrics(directory)
    ]
    evaluations = [json.loads(path.read_text()) for path in sorted((directory / "evaluation").glob("*.json"))]
    return tensors, records, [[e["return"]["mean"], e.get("q")] for e in evaluations]


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = start(tmp_path, "whole")
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output.decode()
    rng = np.random.default_rng(int(time.time()))  # other instants in every run of the test
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(2):
        process = start(tmp_path, "killed")
        before = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 1.0)))
        process.kill()
        process.communicate()
    process = start(tmp_path, "killed")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()

    tensors, records, evaluations = finished(tmp_path / "whole")
    tensors_again, records_again, evaluations_again = finished(tmp_path / "killed")
    assert [step for step, _ in records] == list(range(200, 2401, 200))
    assert records_again == records and evaluations_again == evaluations
    assert len(evaluations) == 9, "before, at six steps, at the end, and of the best policy"
    assert set(tensors) == set(tensors_again)
    for name, value in tensors.items():
        np.testing.assert_array_equal(tensors_again[name], value, err_msg=name)


def test_pendulum_learns_and_the_run_directory_tells(tmp_path: Path) -> None:
    """A random policy has a return of about -1200, and one that holds the pendulum up -150."""
    rates = (f"algorithm.{name}_learning_rate=0.002" for name in ("actor", "critic", "temperature"))
    plan = ("off_policy.env_steps=8000", "off_policy.random_steps=500", "off_policy.round_steps=500")
    small = ("evaluation.episodes=10", "evaluation.every=0", "algorithm.hidden=[64, 64]", "algorithm.gamma=0.97")
    report = control.train(config_of(tmp_path, "pendulum", *SMALL, *plan, *rates, *small))
    files = read_run(tmp_path / "pendulum")
    means = {record["name"]: record["return"]["mean"] for record in files.returns}
    assert set(means) == {"start", "final"}
    assert means["start"] < -900 and means["final"] > -500, means
    last = read_metrics(tmp_path / "pendulum")[-1]["values"]
    assert 0.5 < last["critic/sigma_calibration"] < 2 and 0 <= last["critic/clip_share"] < 0.2
    page = report.read_text()
    assert "Mean return" in page and "Calibration of sigma" in page and "Bias of Q" in page
    assert 'id="success"' not in page and not files.remarks


def test_a_budget_of_episodes_ends_a_run_early(tmp_path: Path) -> None:
    plan = ("off_policy.env_steps=4000", "off_policy.round_steps=200", "off_policy.random_steps=4000", "run.max_episodes=3")
    control.train(config_of(tmp_path, "cut", *SMALL, *plan))
    assert read_metrics(tmp_path / "cut")[-1]["step"] == 600
    evaluation = json.loads((tmp_path / "cut/evaluation/final.json").read_text())
    assert evaluation["step"] == 600


def test_another_algorithm_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    plan = ("off_policy.env_steps=200", "off_policy.round_steps=200", "off_policy.random_steps=200")
    control.train(config_of(tmp_path, "a", *SMALL, *plan))
    with pytest.raises(RunError, match=r"algorithm\.name"):
        control.train(config_of(tmp_path, "a", *SMALL, *plan, "algorithm.name=sac"))


def test_a_trained_policy_is_evaluated_from_its_run(tmp_path: Path) -> None:
    plan = ("off_policy.env_steps=200", "off_policy.round_steps=200", "off_policy.random_steps=200")
    config = config_of(tmp_path, "a", *SMALL, *plan)
    control.train(config)
    found = json.loads(control.evaluate_policy(config, tmp_path / "a").read_text())
    final = json.loads((tmp_path / "a/evaluation/final.json").read_text())
    assert found["return"] == final["return"]
    with pytest.raises(ConfigError, match="run directory"):
        control.evaluate_policy(config, None)
    other = config_of(tmp_path, "a", *SMALL, *plan, "sim.id=InvertedPendulum-v5")
    with pytest.raises(ConfigError, match=r"maps 3 numbers to 1, but InvertedPendulum-v5 has 4 and takes 1; set sim\.id"):
        control.evaluate_policy(other, tmp_path / "a")


def test_the_update_to_data_ratio_counts_from_the_end_of_the_random_steps() -> None:
    plan = OffPolicyConfig(random_steps=1000, updates_per_step=0.1)
    assert [_updates_due(plan, step) for step in (500, 1000, 1009, 1010, 1030, 2000)] == [0, 0, 0, 1, 3, 100]
    assert _updates_due(OffPolicyConfig(random_steps=0, updates_per_step=4), 7) == 28


def test_soft_returns_by_hand() -> None:
    # gamma .5, alpha .1, tail 8: G_3 = 3 + .5 * 8 = 7; G_2 = 2 + .5 (7 - .1 * 10) = 5; G_1 = 1 + .5 (5 - .1 * 20) = 2.5
    np.testing.assert_allclose(
        soft_returns(np.array([1.0, 2.0, 3.0]), np.array([30.0, 20.0, 10.0]), 8.0, 0.1, 0.5), [2.5, 5.0, 7.0]
    )


class Countdown:
    """Row i's episode lasts seed steps, with reward 1 each; then another begins."""

    num_envs, observation_dim, action_dim, max_episode_steps = 2, 1, 1, 100

    def reset(self, seeds: list[int]) -> np.ndarray:
        self.left = np.array(seeds, np.float32)
        return self.left[:, None].copy()

    def step(self, actions: np.ndarray) -> ControlStep:
        self.left -= 1
        final, ended = self.left[:, None].copy(), self.left <= 0
        self.left[ended] = 50
        reward = np.ones(2, np.float32)
        return ControlStep(self.left[:, None].copy(), reward, ended, ~ended & False, final, {"success": ended * 1.0})

    def close(self) -> None: ...


def test_each_seed_is_evaluated_once_by_its_first_episode() -> None:
    found = run_control_episodes(Countdown(), lambda observation: np.zeros((2, 1), np.float32), [3, 1, 4, 1, 5])
    assert [(e.seed, e.total_reward, e.steps) for e in found] == [(3, 3, 3), (1, 1, 1), (4, 4, 4), (1, 1, 1), (5, 5, 5)]
    assert found[0].measures == {"success": 1.0}


def test_greedy_environments_act_by_the_middle_of_the_gaussian() -> None:
    sim, replay = Countdown(), ReplayBuffer(100, 1, 1)
    learner = DsacT(AlgorithmConfig(hidden=(8,)), 1, 1, 0)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    experience = Experience(sim, replay)
    with torch.no_grad():  # the observations are large, and tanh must tell actions apart
        learner.actor.network[0].weight.mul_(0.01)  # type: ignore[operator]
    experience.restart([30, 40])
    take_step = sim.step
    sim.step = lambda actions: (seen.append((sim.left[:, None].copy(), actions)), take_step(actions))[1]  # type: ignore[method-assign]
    plan = OffPolicyConfig(greedy_share=0.5, random_steps=0, round_steps=20, updates_per_step=1e-9)
    _round(plan, learner, replay, experience, np.random.default_rng(0), {"step": 0}, Stopwatch())
    observations, actions = (np.stack(part) for part in zip(*seen, strict=True))
    middle = np.stack([learner.actor.act(observation) for observation in observations])
    np.testing.assert_array_equal(actions[:, 0], middle[:, 0])
    assert (actions[:, 1] != middle[:, 1]).all() and len(actions) == 10


DRIVING = (
    "sim.name=wheeled",
    "sim.id=tracking_slow",
    "sim.options.time_limit=2",
    "algorithm.hidden=[8]",
    "run.device=cpu",
    "off_policy.env_steps=100",
    "off_policy.round_steps=100",
    "off_policy.random_steps=100",
    "evaluation.episodes=3",
    "evaluation.bias_episodes=0",
    "evaluation.every=0",
    "evaluation.videos=2",
)


def test_a_driving_run_leaves_videos_of_its_last_evaluation(tmp_path: Path) -> None:
    report = control.train(config_of(tmp_path, "drive", *DRIVING))
    final = json.loads((tmp_path / "drive/evaluation/final.json").read_text())
    filmed = [episode for episode in final["episodes"] if "video" in episode]
    assert [episode["seed"] for episode in filmed] == [1, 3], "all fail within two seconds; the first two are shown"
    for episode in filmed:
        path = tmp_path / "drive" / episode["video"]
        assert path.name.endswith("_failure.mp4")
        video = cv2.VideoCapture(str(path))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == episode["steps"], "one frame before each decision"
        video.release()
    page = report.read_text()
    assert page.count("data:video/mp4") == 2 and "seed 3" in page
    assert not list((tmp_path / "drive/videos").glob("start*"))


def test_videos_are_refused_before_training_where_there_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(SimError, match=r"set sim\.options\.render_mode=rgb_array"):
        control.train(config_of(tmp_path, "a", *SMALL, "evaluation.videos=1"))
    assert not (tmp_path / "a").exists()


def test_the_best_policy_is_kept_and_chosen_by_other_episodes_than_it_is_judged_by(tmp_path: Path) -> None:
    plan = ("off_policy.env_steps=600", "off_policy.round_steps=200", "off_policy.random_steps=200", "evaluation.every=1")
    config = config_of(tmp_path, "a", *SMALL, *plan)
    control.train(config)
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "a/evaluation").glob("*.json")}
    validated = {record["step"]: record["return"]["mean"] for name, record in records.items() if name.startswith("step_")}
    assert set(validated) == {200, 400, 600}
    best = max(validated, key=lambda step: validated[step])
    assert [folder.name for folder in (tmp_path / "a/best").iterdir()] == [f"step_{best:08d}"]
    seeds = {name: {episode["seed"] for episode in record["episodes"]} for name, record in records.items()}
    assert seeds["start"] == seeds["final"] == {1, 3} and not seeds["step_00000400"] & seeds["final"]
    judged = json.loads(control.evaluate_policy(with_best(config), tmp_path / "a").read_text())
    assert judged["return"] == records["final" if best == 600 else "best"]["return"]


def test_a_longer_run_is_judged_anew(tmp_path: Path) -> None:
    plan = ("off_policy.round_steps=200", "off_policy.random_steps=200", "evaluation.every=0")
    path = tmp_path / "a" / "evaluation" / "final.json"
    written = []
    for steps, episodes in ((400, 2), (400, 2), (600, 2), (600, 3)):
        control.train(config_of(tmp_path, "a", *SMALL, *plan, f"off_policy.env_steps={steps}", f"evaluation.episodes={episodes}"))
        record = json.loads(path.read_text())
        assert (record["step"], record["return"]["episodes"]) == (steps, episodes)
        written.append(path.stat().st_mtime_ns)
    assert written[0] == written[1] < written[2] < written[3], "made again where something changed, and only there"


def test_a_share_of_greedy_environments_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"greedy_share=0\.4 of sim\.num_envs=1 is no environment"):
        control.train(config_of(tmp_path, "a", *SMALL, "sim.num_envs=1", "off_policy.greedy_share=0.4"))


def with_best(config: ControlConfig) -> ControlConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"policy": "best"})})


def test_one_best_policy_is_kept(tmp_path: Path) -> None:
    assert best_policy(tmp_path) is None
    for step, bias in ((100, 0.1), (200, 0.2)):
        policy = GaussianPolicy(2, 1, (4,))
        with torch.no_grad():
            policy.network[-1].bias[0] = bias
        keep_best(tmp_path, policy, step)
    found = best_policy(tmp_path)
    assert found is not None and found[1] == 200 and found[0].network[-1].bias[0].item() == pytest.approx(0.2)
    with pytest.raises(PolicyError, match=r"no best policy.*evaluation\.every"):
        chosen_policy(tmp_path / "other", best=True)
