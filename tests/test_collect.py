import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_rl import collect_worker
from vla_rl.collect import check_settings, collect_demonstrations, replay
from vla_rl.collect_worker import Collection
from vla_rl.config import CollectSettings, ConfigError, RoboTwinOptions
from vla_rl.config_files import load_section
from vla_rl.curriculum import EVALUATION_SEED_START
from vla_rl.data import DatasetError
from vla_rl.data.libero_hdf5 import finished_parts, parts_folder, read_demonstrations
from vla_rl.data.quality import no_ops
from vla_rl.sim import SimError
from vla_rl.sim.libero.expert import ExpertStep, NoiseSettings, SceneView, TaskExpert

CAMERAS = ("agentview", "robot0_eye_in_hand")
TASK = "pick_up_the_cream_cheese_and_place_it_in_the_basket_demo.hdf5"


def collect(folder: Path, episodes: int = 3, **changes: Any) -> Path:
    """Two processes, no cameras: what the physics gives, quickly."""
    settings: dict[str, Any] = {"task_ids": (1,), "seed": 5, "cameras": (), "workers": 2}
    (path,) = collect_demonstrations(CollectSettings(episodes=episodes, output=folder, **settings | changes), progress=False)
    return path


def contents(path: Path) -> dict[str, Any]:
    """Every dataset and attribute of a file."""
    found: dict[str, Any] = {}

    def visit(name: str, thing: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{key}": value for key, value in thing.attrs.items()})
        if isinstance(thing, h5py.Dataset):
            found[name] = thing[:]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def assert_equal(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(tmp_path_factory.mktemp("collected"))


def collection(**changes: Any) -> Collection:
    settings: dict[str, Any] = {
        "suite": "libero_object", "task_id": 1, "seed": 5, "cameras": (), "image_size": 64, "render_quality": "fast",
        "antialiasing": 1, "controller": "exact", "frame_stride": 1, "shipped_states": 0.5, "noise": NoiseSettings(),
        "varied": True,
    }  # fmt: skip
    return Collection(**settings | changes)


def test_episodes_begin_in_training_states_only() -> None:
    specs = [collection().spec(number, 0) for number in range(120)]
    shipped = [spec.init_state_id for spec in specs if spec.init_state_id is not None]
    # Half of 120, each of the states 0-39 at least once and none three times.
    assert len(shipped) == 60
    assert set(shipped) == set(range(40))
    assert max(shipped.count(state) for state in range(40)) == 2
    seeds = [spec.seed for spec in specs if spec.init_state_id is None]
    assert len(set(seeds)) == 60
    assert max(seeds) < EVALUATION_SEED_START
    for share, count in ((0.0, 0), (0.25, 30), (1.0, 120)):
        specs = [collection(shipped_states=share).spec(number, 0) for number in range(120)]
        assert sum(spec.init_state_id is not None for spec in specs) == count
    # After a failure another state is sampled.
    assert all(collection(shipped_states=1.0).spec(number, 1).init_state_id is None for number in range(10))
    assert collection().spec(0, 1) != collection().spec(0, 2)


def test_settings_survive_the_way_to_the_worker() -> None:
    sent = collection(cameras=("agentview",), noise=NoiseSettings(std=0.3, burst_steps=(2, 9)))
    assert Collection.from_json(sent.to_json()) == sent


def test_demonstrations_succeed_and_hold_clean_labels(collected: Path) -> None:
    assert collected.name == TASK
    demonstrations = list(read_demonstrations(collected))
    assert len(demonstrations) == 3
    for demo in demonstrations:
        assert demo.success
        assert demo.instruction == "pick up the cream cheese and place it in the basket"
        assert demo.expert_actions is not None and demo.states is not None and demo.skills is not None
        # Noise moves the hand; rotation and gripper are executed as the expert wants them.
        noise = demo.actions - demo.expert_actions
        assert 0.05 < noise[:, :3].std() < 0.4
        assert (noise[:, 3:] == 0).all()
        assert demo.skills[0] == "reach" and "carry" in demo.skills
        # The success is five steps before the end.
        assert demo.rewards[-6] == 1 and (demo.rewards[:-6] == 0).all()
        # State rows: time, then qpos with the seven arm joints first.
        np.testing.assert_array_equal(demo.joint_states, demo.states[:, 1:8])
        np.testing.assert_allclose(np.diff(demo.states[:, 0]), 0.05)
        assert "/" in demo.model_xml and "site-packages" not in demo.model_xml


def test_stored_actions_succeed_again_bit_for_bit(collected: Path, tmp_path: Path) -> None:
    report = replay(collected)
    assert (report.episodes, report.successes, report.compared, report.exact, report.failed) == (3, 3, 3, 3, ())
    altered = tmp_path / collected.name
    altered.write_bytes(collected.read_bytes())
    with h5py.File(altered, "r+") as file:
        file["data/demo_1/actions"][:, 6] = -1.0
    report = replay(altered)
    assert (report.episodes, report.successes, report.exact) == (3, 2, 2)
    assert len(report.failed) == 1 and "episode 1" in report.failed[0]


def test_a_collection_that_was_killed_goes_on_without_repeating_an_episode(collected: Path, tmp_path: Path) -> None:
    path = tmp_path / TASK
    code = "import sys, vla_rl.cli; sys.argv = sys.argv[1:]; vla_rl.cli.main()"
    words = ["vla-rl", "collect", "expert", "suite=libero_object", "task_ids=[1]", "episodes=3", "seed=5", "cameras=[]"]
    process = subprocess.Popen([sys.executable, "-c", code, *words, f"output={tmp_path}", "workers=1"])
    deadline = time.monotonic() + 120
    while not finished_parts(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = finished_parts(path)
    assert 1 <= len(done) < 3 and not path.exists()
    assert [demo.success for demo in read_demonstrations(path)] == [True] * len(done)
    for key in done:
        with h5py.File(parts_folder(path) / f"episode_{key:06d}.hdf5", "r+") as file:
            file["data/demo_0"].attrs["marker"] = key
    again = collect(tmp_path)
    with h5py.File(again, "r+") as file:
        for key in done:  # the marker is still there: the episode was not made again
            del file[f"data/demo_{key}"].attrs["marker"]
    assert_equal(collected, again)


def test_neither_the_number_of_processes_nor_of_runs_changes_the_data(collected: Path, tmp_path: Path) -> None:
    assert len(list(read_demonstrations(collect(tmp_path, 2, workers=1)))) == 2
    assert_equal(collect(tmp_path, 3, workers=1), collected)
    assert_equal(collect(tmp_path, 1), collected)


def test_data_of_other_settings_is_not_mixed(collected: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds demonstrations of other settings \(frame_stride was 1, is now 2\)"):
        collect(collected.parent, frame_stride=2)
    (collected.parent / "other").mkdir()
    foreign = collected.parent / "other" / TASK
    with h5py.File(foreign, "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(DatasetError, match="was not made by this collector"):
        collect(foreign.parent)


def test_actions_that_do_nothing_are_dropped_where_the_episode_succeeds_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert that dreams at the beginning, and stands still where its fingers close: only the first is dropped."""

    class Dreamer:
        def __init__(self, expert: TaskExpert) -> None:
            self.expert, self.left = expert, 4

        def act(self, scene: SceneView) -> ExpertStep:
            step = self.expert.act(scene)
            self.left -= 1
            return step if self.left < 0 else replace(step, action=np.array([0, 0, 0, 0, 0, 0, -1], np.float32))

    monkeypatch.setattr(collect_worker.TaskExpert, "of", lambda *words, of=TaskExpert.of: Dreamer(of(*words)))
    collector = collect_worker.Collector(collection())
    path = tmp_path / TASK
    collector.make(collection(noise=NoiseSettings.of(0.0)), 0, path, None)
    collector.close()
    (demo,) = read_demonstrations(path)
    # The first dreaming step sets the gripper, and counts as an action.
    assert demo.provenance["no_ops"]["dropped"] == 3
    success = demo.rewards.tolist().index(1.0)
    assert no_ops(demo.actions[:success]).sum() == demo.provenance["no_ops"]["kept"]
    report = replay(path)
    assert (report.successes, report.exact) == (1, 1)


def test_frames_are_rendered_every_so_many_steps(tmp_path: Path) -> None:
    path = collect(tmp_path, 1, cameras=CAMERAS, image_size=32, frame_stride=20, compression="gzip", render_quality="exact")
    demo = next(read_demonstrations(path))
    assert demo.frame_index.tolist() == list(range(0, len(demo), 20))
    assert {name: frames.shape[1:] for name, frames in demo.images.items()} == {
        "agentview": (32, 32, 3),
        "robot0_eye_in_hand": (32, 32, 3),
    }
    # The arm moves between frames, and no frame is empty.
    for frames in demo.images.values():
        assert all(frame.std() > 10 for frame in frames)
        assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()


def test_what_cannot_be_collected_is_said(tmp_path: Path) -> None:
    with pytest.raises(SimError, match="no suite 'libero_objects'"):
        collect(tmp_path, suite="libero_objects")
    with pytest.raises(SimError, match="there is no task 10"):
        collect(tmp_path, task_ids=(10,))
    with pytest.raises(SimError, match="antialiasing"):
        collect(tmp_path, antialiasing=3)
    with pytest.raises(ConfigError, match="unknown key 'episode' in the command line; did you mean 'episodes'"):
        load_section(CollectSettings, None, ["episode=3"])


def test_settings_that_nobody_reads_are_refused() -> None:
    check_settings(CollectSettings(suite="robotwin", cameras=("head_camera",), robotwin=RoboTwinOptions(profile="lite")))
    check_settings(CollectSettings(noise=0.2, controller="fast", render_quality="exact"))
    with pytest.raises(ConfigError, match="suite robotwin does not read noise, controller; leave out noise="):
        check_settings(CollectSettings(suite="robotwin", noise=0.2, controller="fast"))
    with pytest.raises(ConfigError, match="suite libero_object does not read robotwin"):
        check_settings(CollectSettings(robotwin=RoboTwinOptions(profile="lite")))


def test_an_expert_that_always_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"failed 5 times in a row on libero_object task 1 \(last: .*no success within 280 steps"
    ):
        collect(tmp_path, 1, noise=50)


def test_a_worker_that_dies_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    def kill_worker() -> None:
        while not stop.wait(0.05):
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    if b"vla_rl.collect_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)
                        return

    stop = threading.Event()
    killer = threading.Thread(target=kill_worker)
    killer.start()
    try:
        with pytest.raises(DatasetError, match=f"a collecting process ended with code -9 while making {TASK}"):
            collect(tmp_path, 1, workers=1)
    finally:
        stop.set()
        killer.join()
