"""RoboTwin behind `VectorSim`, in its own interpreter, with the lite profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_rl.collect import collect_demonstrations, replay
from vla_rl.config import CollectSettings, RoboTwinOptions
from vla_rl.data.chunks import ChunkDataset
from vla_rl.data.libero_hdf5 import read_demonstrations
from vla_rl.evaluate import EpisodeOutcome, _repeat
from vla_rl.policies.openvla import ActionStatistics, build_policy
from vla_rl.rollout.collector import collect
from vla_rl.sim import EpisodeSpec, SimError, make_sim
from vla_rl.sim.conformance import CHECKS, Case, check_end_of_episode
from vla_rl.sim.environments import find_environment
from vla_rl.sim.mixed import MixedSim
from vla_rl.sim.pool import SimPool
from vla_rl.sim.robotwin.tasks import STEP_LIMITS, task_named

pytestmark = pytest.mark.slow
STACK, RANK = task_named("stack_blocks_two").id, task_named("blocks_ranking_rgb").id


def make(num_envs: int = 1, num_workers: int = 1, cameras: tuple[str, ...] = (), **options: object) -> SimPool:
    sim = make_sim("robotwin", num_envs=num_envs, num_workers=num_workers, cameras=cameras, image_size=(48, 64), **options)
    assert isinstance(sim, SimPool)
    return sim


def near_home(generator: np.random.Generator, length: int, action_dim: int) -> np.ndarray:
    """Small motions around zero, which is far from home in some joints: the arms move and reach nothing."""
    return generator.uniform(-0.3, 0.3, (length, action_dim)).astype(np.float32)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_robotwin_conforms(check: Callable[[Case], None]) -> None:
    """Without pictures, whose first one takes seconds a process; those have a test of their own."""
    task = STACK if check is check_end_of_episode else RANK
    specs = [EpisodeSpec("robotwin", RANK, init_state_id=3), *(EpisodeSpec("robotwin", STACK, seed=seed) for seed in (1, 2))]
    ending = EpisodeSpec("robotwin", task, seed=1)
    limit = 800 if task == STACK else 1200
    check(Case(make, specs, ending, limit, impossible_spec=EpisodeSpec("robotwin", 50), actions=near_home, turns=2))


def test_missing_meshes_are_named_at_once() -> None:
    with make() as sim:
        begin = time.monotonic()
        with pytest.raises(
            SimError, match="cannot run click_bell: it needs the meshes 050_bell; .*ROBOTWIN_ASSETS_ROOT"
        ) as caught:
            sim.reset([EpisodeSpec("robotwin", task_named("click_bell").id, seed=0)])
        assert time.monotonic() - begin < 5 and "\n" not in str(caught.value)


def test_missing_official_files_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBOTWIN_ASSETS_ROOT", str(tmp_path))
    wanted = "lacks: assets/embodiments/aloha-agilex/config.yml, assets/objects/050_bell"
    with make() as sim, pytest.raises(SimError, match=wanted):
        sim.reset([EpisodeSpec("robotwin", task_named("click_bell").id, seed=0)])


@pytest.mark.parametrize(
    "options",
    [{"control": "smooth"}, {"profile": "heavy"}, {"instructions": "both"}, {"shader": "toon"}, {"waypoint_stride": -3}],
)
def test_unknown_options_are_refused(options: dict[str, str | int]) -> None:
    (name,) = options.values()
    with pytest.raises(SimError, match=str(name)):
        make(**options)


def test_a_seed_and_a_killed_worker_give_the_same_pictures() -> None:
    """Three cameras; two rows begin alike, and one goes on alone in a new process after its first was killed."""
    cameras = ("head_camera", "left_camera", "right_camera")
    spec = EpisodeSpec("robotwin", STACK, init_state_id=0)
    with make(2, 1, cameras) as sim:
        first = sim.reset([spec, spec])
        assert first.instruction[0] == first.instruction[1] and "green" in first.instruction[0]
        chunk = (first.proprio[:, None] + np.linspace(0, 0.2, 5)[:, None]).astype(np.float32)
        chunk[..., [6, 13]] = 1
        for camera in cameras:
            assert first.images[camera].shape == (2, 48, 64, 3) and len(np.unique(first.images[camera][0])) > 8
            np.testing.assert_array_equal(first.images[camera][0], first.images[camera][1])
        before = sim.step_chunk(chunk)
        for pid in filter(None, sim.worker_pids):
            os.kill(pid, signal.SIGKILL)
        after = sim.step_chunk(chunk)
        # A chunk that ends where the arms are already changes nothing but the settling of the physics.
        assert before.executed.all() and after.executed.all() and not after.errors
        for camera in cameras:
            np.testing.assert_array_equal(after.observation.images[camera][0], after.observation.images[camera][1])


def test_privileged_proprioception_tells_where_the_objects_are() -> None:
    """The red block, then the green one, on the table of .74 m with their centres half a block, .025 m, above it; no third.

    RoboTwin lays them between -.28 and .28 m to the sides, -.08 and .05 m in depth, turned by .75 rad at most.
    """
    specs = [EpisodeSpec("robotwin", STACK, seed=seed) for seed in (4, 5)]
    with make(2) as plain, make(2, privileged=True) as sim:
        assert (plain.proprio_dim, sim.proprio_dim) == (14, 41)
        joints, told = plain.reset(specs), sim.reset(specs)
        np.testing.assert_array_equal(told.proprio[:, :14], joints.proprio)
        blocks = told.proprio[:, 14:].reshape(2, 3, 3, 3)  # environment, object, position or axis, x y z
        for block in blocks[:, :2].reshape(4, 3, 3):
            position, first, second = block
            assert abs(position[0]) <= 0.281 and -0.081 <= position[1] <= 0.051
            assert position[2] == pytest.approx(0.765, abs=2e-3)
            turned = np.arctan2(first[1], first[0])
            assert abs(turned) <= 0.76
            np.testing.assert_allclose(second, [-np.sin(turned), np.cos(turned), 0], atol=1e-2)
        assert not blocks[:, 2].any() and np.abs(blocks[0, 0, 0] - blocks[1, 0, 0]).max() > 0.01
        assert told.instruction == joints.instruction


def test_a_video_shows_the_episode_as_it_was() -> None:
    """Four turns of 200 actions, each one motion: five frames, of which the last is what the policy saw last, upright."""
    with make(cameras=("head_camera",)) as sim:
        policy = build_policy(
            "state",
            cameras=(),
            chunk_length=200,
            action_dim=14,
            proprio_dim=14,
            instructions=["stack"],
            statistics=ActionStatistics.symmetric(np.zeros((1, 14)), minimum_scale=0.05),
            seed=0,
        )
        (episode,) = collect(sim, policy, [EpisodeSpec("robotwin", STACK, seed=4)], 1.0, torch.Generator().manual_seed(0))
        frames = _repeat(sim, EpisodeOutcome(episode.spec, "", episode.success, episode.num_actions, 0.0, episode.actions))
        assert frames.shape == (5, 48, 64, 3)
        np.testing.assert_array_equal(frames[-1], episode.final_images["head_camera"])


def test_controls_are_distinct() -> None:
    """Five actions on one line: as one trajectory the arm stops once, as five it stops five times and so lags less."""
    found = {}
    for control in ("chunk", "action"):
        with make(control=control) as sim:
            proprio = sim.reset([EpisodeSpec("robotwin", STACK, seed=4)]).proprio[0]
            way = np.zeros(14, np.float32)
            way[:3] = 0.2, 0.1, -0.1
            chunk = proprio + np.linspace(0.2, 1, 5)[:, None] * way
            turn = sim.step_chunk(chunk[None].astype(np.float32))
            np.testing.assert_allclose(turn.observation.proprio[0], chunk[-1], atol=2e-3)
            found[control] = sim.save_state(0)
    with make(control="action") as sim, pytest.raises(SimError):
        sim.load_state(0, found["chunk"])


def test_the_expert_is_recorded_and_replayed_to_success(tmp_path: Path) -> None:
    settings = CollectSettings(
        suite="robotwin",
        task_ids=(STACK,),
        episodes=2,
        cameras=(),
        frame_stride=25,
        output=tmp_path,
        workers=1,
        robotwin=RoboTwinOptions(privileged=True),
    )
    (path,) = collect_demonstrations(settings, progress=False)
    found = list(read_demonstrations(path))
    assert len(found) == 2 and found[0].spec == EpisodeSpec("robotwin", STACK, seed=10_000_000)
    for demonstration in found:
        assert demonstration.actions.shape[1] == 14 and demonstration.proprio.shape[1] == 41 and demonstration.success
        np.testing.assert_array_equal(demonstration.actions[:-1], demonstration.proprio[1:, :14])
        # In the end the green block, whose height is number 25, lies on the red one, whose height is number 16.
        assert demonstration.proprio[-1, 25] - demonstration.proprio[-1, 16] == pytest.approx(0.05, abs=0.012)
        assert demonstration.provenance["comparable_with_published_scores"] is False
    assert collect_demonstrations(settings, progress=False) == [path]  # nothing is left to do
    report = replay(path)
    assert (report.episodes, report.successes) == (2, 2)
    # Five waypoints of every fifth step are the same motion as twenty-five of each.
    samples = ChunkDataset.from_demonstrations(found[:1], (), 5, stride=5)
    with make(waypoint_stride=5, privileged=True) as sim:
        sim.reset([found[0].spec])
        turns = [sim.step_chunk(samples[np.array([number])][1]) for number in range(len(samples))]
    assert turns[-1].success[0] and len(samples) < 20


def test_with_a_stride_of_100_eight_actions_are_the_whole_episode() -> None:
    with make(waypoint_stride=100) as sim:
        home = sim.reset([EpisodeSpec("robotwin", STACK, seed=4)]).proprio
        turn = sim.step_chunk(np.repeat(home[:, None], 9, axis=1))
    assert turn.truncated[0] and turn.executed[0].sum() == 8


def test_one_policy_acts_in_libero_and_robotwin() -> None:
    """Rows of both simulators, 14 numbers an action; LIBERO's arm takes the first 7."""
    rows, size = 2, 64
    parts = {
        "libero": make_sim("libero", num_envs=rows, num_workers=1, cameras=("agentview",), image_size=size),
        "robotwin": make_sim("robotwin", num_envs=rows, num_workers=1, cameras=("head_camera",), image_size=size),
    }
    sim = MixedSim({name: part for name, part in parts.items() if isinstance(part, SimPool)}, lambda suite: suite.split("_")[0])
    try:
        assert (sim.action_dim, sim.proprio_dim, sim.cameras) == (14, 14, ("agentview",))
        policy = build_policy(
            "tiny",
            cameras=sim.cameras,
            chunk_length=10,
            action_dim=14,
            proprio_dim=14,
            instructions=["stack the blocks"],
            statistics=ActionStatistics.symmetric(np.ones((1, 14), np.float32)),
            seed=0,
        )
        specs = [EpisodeSpec("robotwin", STACK, seed=1), EpisodeSpec("libero_object", 0, init_state_id=0)]
        observation = sim.reset(specs)
        for _ in range(2):
            actions = policy.act(observation, 1.0, torch.Generator().manual_seed(0)).actions
            turn = sim.step_chunk(actions)
            observation = turn.observation
        state = sim.save_state(1)
        swapped = sim.reset([specs[1]], [0])
        again = sim.step_chunk(actions)
    finally:
        sim.close()
    assert turn.executed.all() and not turn.finished.any() and not turn.errors and state
    assert "block" in observation.instruction[0] and "block" not in observation.instruction[1]
    assert observation.proprio[0, 8:].any() and not observation.proprio[1, 8:].any()
    # Row 0 is LIBERO's now, and its first observation is the one that row 1 began with.
    assert not swapped.proprio[0, 8:].any() and swapped.instruction[0] == swapped.instruction[1]
    assert again.executed.all() and not again.errors


def test_the_tables_are_the_runtimes() -> None:
    environment = find_environment("robotwin")
    assert environment is not None
    program = "import json; from robotwin.config import load_task_config; print(json.dumps(load_task_config('_eval_step_limit')))"
    done = subprocess.run([str(environment.python), "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == STEP_LIMITS
