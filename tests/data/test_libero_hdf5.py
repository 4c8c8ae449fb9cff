import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.data import DatasetError, Demonstration
from vla_rl.data.dataset import ReadOptions
from vla_rl.data.hdf5_format import hdf5_info
from vla_rl.data.libero_hdf5 import (
    TaskHeader,
    add_episode,
    finished_parts,
    merge_parts,
    parts_folder,
    read_demonstrations,
    split_into_parts,
    write_demonstrations,
)
from vla_rl.data.quality import quality_of
from vla_rl.types import EpisodeSpec

HEADER = TaskHeader(
    env_name="Libero_Floor_Manipulation",
    problem_info={"language_instruction": "pick up the soup", "problem_name": "libero_floor_manipulation"},
    bddl_file_name="libero_object/soup.bddl",
    bddl_file_content="(define (problem LIBERO_Floor_Manipulation))",
    env_args={"type": 1, "env_name": "Libero_Floor_Manipulation"},
)


def make_demonstration(steps: int = 6, stride: int = 1, seed: int = 0, size: int = 5) -> Demonstration:
    rng = np.random.default_rng(seed)
    index = np.arange(0, steps, stride)
    return Demonstration(
        instruction="pick up the soup",
        images={
            camera: rng.integers(0, 256, (len(index), size, size, 3), dtype=np.uint8)
            for camera in ("agentview", "robot0_eye_in_hand", "sideview")
        },
        frame_index=index,
        proprio=rng.normal(size=(steps, 8)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        rewards=np.eye(1, steps, steps - 1, dtype=np.float32)[0],
        success=True,
        expert_actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        spec=EpisodeSpec("libero_object", 0, init_state_id=3, seed=seed),
        skills=tuple(["reach", "grasp", "place"][t % 3] for t in range(steps)),
        joint_states=rng.normal(size=(steps, 7)),
        states=rng.normal(size=(steps, 11)),
        model_xml="<mujoco/>",
        provenance={"noise": 0.1},
    )


def assert_same(read: Demonstration, written: Demonstration) -> None:
    for name, value in vars(written).items():
        if name == "images":
            assert set(read.images) == set(value)
            for camera in value:
                np.testing.assert_array_equal(read.images[camera], value[camera])
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(read, name), value)
            assert getattr(read, name).dtype == value.dtype
        else:
            assert getattr(read, name) == value, name


@settings(max_examples=15)
@given(
    steps=st.integers(1, 9), stride=st.integers(1, 4), seed=st.integers(0, 99), compression=st.sampled_from([None, "gzip", "lzf"])
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: int, stride: int, seed: int, compression: str | None
) -> None:
    path = tmp_path_factory.mktemp("hdf5") / "task_demo.hdf5"
    written = [make_demonstration(steps, stride, seed), make_demonstration(steps + 2, stride, seed + 1)]
    assert write_demonstrations(path, HEADER, written, compression) == path
    read = list(read_demonstrations(path))
    for one, other in zip(read, written, strict=True):
        assert_same(one, other)
    assert not parts_folder(path).exists()


def test_the_layout_is_libero_s(tmp_path: Path) -> None:
    demo = make_demonstration(6)
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [demo, make_demonstration(4, seed=1)])
    with h5py.File(path) as file:
        data = file["data"]
        assert data.attrs["tag"] == "libero-v1"
        assert data.attrs["num_demos"] == 2
        assert data.attrs["total"] == 10
        assert data.attrs["macros_image_convention"] == "opengl"
        assert data.attrs["env_name"] == "Libero_Floor_Manipulation"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "pick up the soup"
        assert json.loads(data.attrs["env_args"])["type"] == 1
        assert data.attrs["bddl_file_name"] == "libero_object/soup.bddl"
        assert data.attrs["bddl_file_content"].startswith("(define")
        episode = data["demo_0"]
        assert episode.attrs["num_samples"] == 6
        assert episode.attrs["model_file"] == "<mujoco/>"
        np.testing.assert_array_equal(episode.attrs["init_state"], demo.states[0])
        shapes = {"actions": (6, 7), "states": (6, 11), "robot_states": (6, 9), "rewards": (6,), "dones": (6,)}
        assert {name: episode[name].shape for name in shapes} == shapes
        assert episode["dones"].dtype == np.uint8
        assert episode["dones"][:].tolist() == [0, 0, 0, 0, 0, 1]
        shapes = {
            "agentview_rgb": (6, 5, 5, 3),
            "eye_in_hand_rgb": (6, 5, 5, 3),
            "gripper_states": (6, 2),
            "joint_states": (6, 7),
            "ee_states": (6, 6),
            "ee_pos": (6, 3),
            "ee_ori": (6, 3),
        }
        assert {name: episode["obs"][name].shape for name in shapes} == shapes
        assert "frame_index" not in episode["obs"]
        # Proprioception is position, axis-angle, fingers; robot_states is fingers, position, quaternion.
        np.testing.assert_allclose(episode["robot_states"][:, :2], demo.proprio[:, 6:])
        np.testing.assert_allclose(episode["robot_states"][:, 2:5], demo.proprio[:, :3])
        np.testing.assert_allclose(episode["obs/ee_states"][:], demo.proprio[:, :6])


def write_human(path: Path, **attributes: object) -> np.ndarray:
    """A file laid out as LIBERO publishes them: 64-bit actions, no rewards but the last, none of our additions."""
    frames = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Kitchen_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps(
            {"problem_name": "libero_kitchen", "domain_name": "robosuite", "language_instruction": "open the drawer"}
        )
        data.attrs["bddl_file_name"] = "chiliocosm/bddl_files/libero_goal/open_the_drawer.bddl"
        data.attrs["bddl_file_content"] = "(define (problem LIBERO_Kitchen))"
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Kitchen", "env_kwargs": {"control_freq": 20}})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["tag"] = "libero-v1"
        data.attrs["num_demos"] = 4
        data.attrs["total"] = 12
        for name, value in attributes.items():
            data.attrs[name] = value
        for number, name in enumerate(["demo_0", "demo_1", "demo_10", "demo_2"]):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = 3
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["init_state"] = np.zeros(5)
            demo["actions"] = np.full((3, 7), number / 10)
            demo["dones"] = np.array([0, 0, 1], np.uint8)
            demo["rewards"] = np.array([0, 0, 1], np.uint8)
            demo["states"] = np.zeros((3, 5))
            demo["robot_states"] = np.zeros((3, 9))
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = frames
            obs["eye_in_hand_rgb"] = frames
            obs["ee_states"] = np.arange(18.0).reshape(3, 6)
            obs["ee_pos"], obs["ee_ori"] = obs["ee_states"][:, :3], obs["ee_states"][:, 3:]
            obs["gripper_states"] = np.full((3, 2), 0.5)
            obs["joint_states"] = np.zeros((3, 7))
    return frames


def test_human_demonstrations_are_read_in_numeric_order(tmp_path: Path) -> None:
    frames = write_human(tmp_path / "open_demo.hdf5")
    read = list(read_demonstrations(tmp_path / "open_demo.hdf5"))
    np.testing.assert_allclose([demo.actions[0, 0] for demo in read], [0, 0.1, 0.3, 0.2], rtol=1e-6)
    first = read[0]
    assert first.instruction == "open the drawer"
    assert first.success
    assert first.expert_actions is None and first.spec is None and first.skills is None
    np.testing.assert_array_equal(first.labels, first.actions)
    np.testing.assert_array_equal(first.images["robot0_eye_in_hand"], frames)
    np.testing.assert_array_equal(first.proprio[1], [6, 7, 8, 9, 10, 11, 0.5, 0.5])
    assert first.fps == 20 and first.states is not None and first.rewards.tolist() == [0, 0, 1]
    # 0.1 is no 32-bit number: what rounding did to the actions is on record.
    assert "rounded_actions" not in first.provenance
    assert read[1].provenance["rounded_actions"] == "from float64, by at most 1.5e-09"


def test_a_gripper_of_another_convention_is_refused(tmp_path: Path) -> None:
    write_human(tmp_path / "open_demo.hdf5")
    replace(tmp_path / "open_demo.hdf5", "actions", np.eye(3, 7, 4))
    with pytest.raises(DatasetError, match=r"gripper commands from 0 to 1 contradict the convention -1_opens_\+1_closes"):
        next(read_demonstrations(tmp_path / "open_demo.hdf5"))


def test_labels_of_quality_are_stored_with_each_episode(tmp_path: Path) -> None:
    demo = make_demonstration()
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [demo])
    with h5py.File(path) as file:
        assert json.loads(file["data/demo_0"].attrs["quality"]) == quality_of(demo).to_dict()
        assert json.loads(file["data"].attrs["convention"])["gripper"] == "-1_opens_+1_closes"


def test_frames_stored_upright_are_turned_to_the_simulators_convention(tmp_path: Path) -> None:
    frames = write_human(tmp_path / "open_demo.hdf5", macros_image_convention="opencv")
    read = next(read_demonstrations(tmp_path / "open_demo.hdf5"))
    np.testing.assert_array_equal(read.images["agentview"], frames[:, ::-1])


def test_cameras_and_limit_select(tmp_path: Path) -> None:
    demos = [make_demonstration(seed=seed) for seed in range(3)]
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, demos)
    read = list(read_demonstrations(path, cameras=["sideview"], limit=2))
    assert [list(demo.images) for demo in read] == [["sideview"], ["sideview"]]
    assert next(read_demonstrations(path, cameras=[])).images == {}
    with pytest.raises(
        DatasetError, match=r"no frames of camera 'birdview'; the file has: agentview, robot0_eye_in_hand, sideview"
    ):
        next(read_demonstrations(path, cameras=["birdview"]))


def test_finished_episodes_are_readable_before_the_end_and_merge_by_key(tmp_path: Path) -> None:
    path = tmp_path / "task_demo.hdf5"
    for key in (7, 2):
        add_episode(path, HEADER, key, make_demonstration(seed=key))
    # What a kill in the middle of writing leaves behind.
    (parts_folder(path) / "episode_000003.hdf5.123.tmp").write_bytes(b"\x89HDF half an episode")
    assert finished_parts(path) == [2, 7]
    for place in (path, tmp_path):
        assert [demo.spec.seed for demo in read_demonstrations(place) if demo.spec] == [2, 7]
    merge_parts(path)
    assert [demo.spec.seed for demo in read_demonstrations(path) if demo.spec] == [2, 7]
    split_into_parts(path)
    add_episode(path, HEADER, 5, make_demonstration(seed=5))
    merge_parts(path)
    read = list(read_demonstrations(tmp_path))
    assert [demo.spec.seed for demo in read if demo.spec] == [2, 5, 7]
    assert_same(read[2], make_demonstration(seed=7))


def test_a_file_that_grows_counts_no_episode_twice(tmp_path: Path) -> None:
    """Of three episodes in a file and a fourth beside it there are 4, although the three lie in parts of their own as well."""
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [make_demonstration(seed=seed) for seed in range(3)])
    split_into_parts(path)
    add_episode(path, HEADER, 3, make_demonstration(seed=3))
    assert [demo.spec.seed for demo in read_demonstrations(tmp_path) if demo.spec] == [0, 1, 2, 3]
    # A kill between the merge and the removal of the parts leaves all of them beside the whole file.
    shutil.copytree(parts_folder(path), tmp_path / "kept")
    merge_parts(path)
    (tmp_path / "kept").rename(parts_folder(path))
    assert [demo.spec.seed for demo in read_demonstrations(tmp_path) if demo.spec] == [0, 1, 2, 3]
    info = hdf5_info(tmp_path, ReadOptions())
    assert info.episodes == 4 and info.remarks == ()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_libero_hdf5 import HEADER, add_episode, make_demonstration, merge_parts
from vla_rl.data import DatasetError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
add_episode(path, HEADER, 0, make_demonstration(4, size=40))
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
for attempt in (lambda: add_episode(path, HEADER, 1, make_demonstration(60, size=40)), lambda: merge_parts(path)):
    try:
        attempt()
    except DatasetError as error:
        print(error)
"""


def test_a_full_disk_costs_only_the_unfinished_episode(tmp_path: Path) -> None:
    # The kernel refuses to let a file grow past 60 kB: the second episode, and the merged file, need more.
    path = tmp_path / "task_demo.hdf5"
    command = [sys.executable, "-c", FULL_DISK, str(path), str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stdout + result.stderr
    assert all(f"cannot write {path}" in line and "1 finished episodes are kept" in line for line in lines)
    assert result.returncode == 0
    assert not path.exists()
    assert [file.name for file in parts_folder(path).iterdir()] == ["episode_000000.hdf5"]
    assert_same(next(read_demonstrations(path)), make_demonstration(4, size=40))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match="cannot write"):
        add_episode(tmp_path / "file" / "task_demo.hdf5", HEADER, 0, make_demonstration())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_0"][name]
        if value is not None:
            file["data/demo_0"][name] = value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a readable HDF5 file"),
        (lambda path: path.write_bytes(b""), "not a readable HDF5 file"),
        (lambda path: path.write_text("a picture"), "not a readable HDF5 file"),
        (lambda path: h5py.File(path, "w").create_dataset("x", data=1).file.close(), "holds no demonstrations"),
        (lambda path: h5py.File(path, "w").create_group("data").file.close(), "holds no demonstrations"),
        (lambda path: replace(path, "actions", None), "demo_0: cannot be read"),
        (lambda path: replace(path, "obs", 3), "demo_0: cannot be read"),
        (lambda path: replace(path, "actions", np.zeros((6, 6))), r"demo_0: actions have shape \(6, 6\), expected \(6, 7\)"),
        (lambda path: replace(path, "actions", np.zeros((5, 7))), "demo_0: proprioception have shape"),
        (lambda path: replace(path, "actions", np.full((6, 7), np.nan)), "demo_0: actions hold values that are not finite"),
        (lambda path: replace(path, "actions", np.zeros((0, 7))), "demo_0: the episode has no steps"),
        (lambda path: replace(path, "dones", np.zeros(0)), "demo_0: cannot be read"),
        (lambda path: replace(path, "obs/agentview_rgb", np.zeros((6, 5, 5, 3))), "frames of agentview are float64"),
        (lambda path: replace(path, "obs/agentview_rgb", np.zeros((4, 5, 5, 3), np.uint8)), r"expected uint8 \(6, H, W, 3\)"),
    ],
)
def test_damage_ends_in_one_line_that_names_the_file(tmp_path: Path, damage: object, message: str) -> None:
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [make_demonstration()])
    damage(path)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_demonstrations(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: replace(path, "dones", np.zeros(0)), "demo_0: cannot be read"),
        (lambda path: replace(path, "obs/agentview_rgb", np.zeros(6, np.uint8)), "demo_0: cannot be read"),
    ],
)
def test_a_description_of_damage_is_one_line(tmp_path: Path, damage: object, message: str) -> None:
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [make_demonstration()])
    with h5py.File(path, "r+") as file:
        del file["data/demo_0"].attrs["success"]
    damage(path)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message) as caught:
        hdf5_info(path, ReadOptions())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_byte_in_compressed_frames_is_found(tmp_path: Path) -> None:
    path = write_demonstrations(tmp_path / "task_demo.hdf5", HEADER, [make_demonstration(40, size=32)], "gzip")
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(20)
    with path.open("r+b") as handle:
        handle.seek(chunk.byte_offset + chunk.size // 2)
        handle.write(bytes(64))
    with pytest.raises(DatasetError, match="demo_0: cannot be read"):
        list(read_demonstrations(path))


def test_missing_places_are_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no demonstration file or folder"):
        list(read_demonstrations(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="holds no .hdf5 file"):
        list(read_demonstrations(tmp_path))
    with pytest.raises(DatasetError, match="no finished episode"):
        merge_parts(tmp_path / "task_demo.hdf5")
    with pytest.raises(DatasetError, match="compression 'zip' is unknown"):
        add_episode(tmp_path / "task_demo.hdf5", HEADER, 0, make_demonstration(), "zip")
