import json
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sets import CAMERAS, demonstration, header, write_small

from vla_rl.data import DatasetError, Demonstration
from vla_rl.data.convention import Convention
from vla_rl.data.dataset import ReadOptions, WriteOptions
from vla_rl.data.formats import FORMATS, convert, dataset_info, format_of, read_episodes
from vla_rl.data.libero_hdf5 import add_episode, parts_folder, write_demonstrations


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Demonstration]]:
    folder = tmp_path_factory.mktemp("sets") / "source"
    return folder, write_small(folder)


@pytest.fixture(scope="module", params=FORMATS)
def converted(request: pytest.FixtureRequest, source: tuple[Path, list[Demonstration]]) -> tuple[str, Path]:
    target = source[0].parent / f"as_{request.param}"
    convert(source[0], target, request.param)
    return request.param, target


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def assert_kept(name: str, read: Demonstration, written: Demonstration) -> None:
    """What every format keeps: numbers to the bit, frames nearly."""
    assert same_bits(read.actions, written.actions)
    assert same_bits(read.proprio, written.proprio)
    assert same_bits(read.rewards, written.rewards)
    assert (read.instruction, read.success, read.spec, read.fps) == (
        written.instruction, written.success, written.spec, written.fps,
    )  # fmt: skip
    assert dict(read.provenance) == dict(written.provenance)
    for camera in CAMERAS:
        difference = np.abs(read.images[camera].astype(int) - written.images[camera])
        assert difference.mean() < 3 and (name != "hdf5" or difference.max() == 0), camera
    if name != "rlds":
        assert read.expert_actions is not None and written.expert_actions is not None
        assert same_bits(read.expert_actions, written.expert_actions)
        assert read.skills == written.skills
        assert np.array_equal(read.joint_states, written.joint_states)  # type: ignore[arg-type]


def test_conversion_keeps_actions_to_the_bit(converted: tuple[str, Path], source: tuple[Path, list[Demonstration]]) -> None:
    name, target = converted
    read = list(read_episodes(target))
    for (found, demo), written in zip(read, source[1], strict=True):
        assert found == header(written.instruction.replace(" ", "_"))
        assert_kept(name, demo, written)


def test_and_back_again(converted: tuple[str, Path], source: tuple[Path, list[Demonstration]], tmp_path: Path) -> None:
    name, target = converted
    done = convert(target, tmp_path / "back", "hdf5")
    assert (done.episodes, done.steps, done.assumed, done.rounded) == (3, 36, (), "")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["lift_it_demo.hdf5", "push_it_demo.hdf5"]
    for (_, demo), written in zip(read_episodes(tmp_path / "back"), source[1], strict=True):
        assert_kept(name, demo, written)


def test_info_of_every_format(converted: tuple[str, Path]) -> None:
    name, target = converted
    assert format_of(target) == name
    info = dataset_info(target)
    assert (info.format, info.episodes, info.steps, info.successes) == (name, 3, 36, 2)
    assert info.instructions == {"lift it": 1, "push it": 2}
    assert info.cameras == {camera: (32, 32) for camera in CAMERAS}
    assert info.assumed == ()
    assert info.convention.frames == ("opengl" if name == "hdf5" else "rotated_180")
    json.dumps(info.to_dict())


def test_our_own_output_passes_the_schema_check(converted: tuple[str, Path]) -> None:
    name, target = converted
    assert FORMATS[name].check(target) == []


@pytest.mark.parametrize("to", ["lerobot", "rlds"])
def test_other_conventions_are_written_and_read_as_stated(
    to: str, source: tuple[Path, list[Demonstration]], tmp_path: Path
) -> None:
    convention = Convention("quaternion_wxyz", "1_opens_0_closes", "upright")
    convert(source[0], tmp_path / "set", to, write=WriteOptions(convention=convention))
    assert dataset_info(tmp_path / "set").convention == convention
    assert FORMATS[to].check(tmp_path / "set") == []
    for (_, demo), written in zip(read_episodes(tmp_path / "set"), source[1], strict=True):
        assert same_bits(demo.actions, written.actions)
        np.testing.assert_allclose(demo.proprio, written.proprio, atol=1e-5)
        assert np.abs(demo.images["agentview"].astype(int) - written.images["agentview"]).mean() < 3
    with pytest.raises(DatasetError, match="the dataset itself states gripper 1_opens_0_closes"):
        list(read_episodes(tmp_path / "set", ReadOptions(stated={"gripper": "-1_opens_+1_closes"})))


def test_hdf5_has_one_convention(source: tuple[Path, list[Demonstration]], tmp_path: Path) -> None:
    write = WriteOptions(convention=Convention(gripper="1_opens_0_closes"))
    with pytest.raises(DatasetError, match="LIBERO's HDF5 files have gripper -1_opens"):
        convert(source[0], tmp_path / "set", "hdf5", write=write)
    with pytest.raises(DatasetError, match="the dataset itself states orientation axis_angle"):
        list(read_episodes(source[0], ReadOptions(stated={"orientation": "quaternion_xyzw"})))
    with pytest.raises(DatasetError, match="there is no convention thumb"):
        dataset_info(source[0], ReadOptions(stated={"thumb": "up"}))


def test_cameras_and_limit_select(converted: tuple[str, Path]) -> None:
    name, target = converted
    read = list(read_episodes(target, ReadOptions(cameras=["robot0_eye_in_hand"], limit=1)))
    assert len(read) == (2 if name == "hdf5" else 1)
    assert list(read[0][1].images) == ["robot0_eye_in_hand"]
    with pytest.raises(DatasetError, match="there are no frames of camera 'birdview'; (it|the file) has: agentview, robot0_eye"):
        list(read_episodes(target, ReadOptions(cameras=["birdview"])))


@pytest.mark.parametrize("to", ["lerobot", "rlds"])
def test_sets_that_these_formats_cannot_hold(to: str, tmp_path: Path) -> None:
    def write(name: str, *demos: Demonstration) -> Path:
        return write_demonstrations(tmp_path / name / "push_it_demo.hdf5", header("push_it"), demos)

    whole = demonstration()
    thinned = replace(whole, images={c: f[::2] for c, f in whole.images.items()}, frame_index=whole.frame_index[::2])
    cases = [
        (write("thin", thinned), "has 6 frames of 12 steps"),
        (write("sizes", whole, demonstration(size=16)), "holds other cameras, sizes or columns"),
        (write("columns", whole, replace(whole, joint_states=None)), "holds other cameras, sizes or columns"),
    ]
    for place, message in cases:
        with pytest.raises(DatasetError, match=message):
            convert(place, tmp_path / "set", to)
        assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".set*"))
    convert(cases[0][0], tmp_path / "set", to, ReadOptions(cameras=()))
    assert [demo.images for _, demo in read_episodes(tmp_path / "set")] == [{}]
    with pytest.raises(DatasetError, match="exists already"):
        convert(cases[0][0], tmp_path / "set", to, ReadOptions(cameras=()))


def test_other_rates_are_kept_and_not_mixed(tmp_path: Path) -> None:
    slow = replace(demonstration(), fps=12.5)
    write_demonstrations(tmp_path / "a" / "push_it_demo.hdf5", header("push_it"), [slow, slow])
    write_demonstrations(tmp_path / "b" / "push_it_demo.hdf5", header("push_it"), [slow, demonstration()])
    for to in ("lerobot", "rlds"):
        convert(tmp_path / "a", tmp_path / to, to)
        assert dataset_info(tmp_path / to).convention.fps == 12.5
        assert [demo.fps for _, demo in read_episodes(tmp_path / to)] == [12.5, 12.5]
    with pytest.raises(DatasetError, match=r"episode 1 runs at 20 Hz, those before at 12\.5"):
        convert(tmp_path / "b", tmp_path / "mixed", "lerobot")


def test_an_unfinished_collection_is_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "push_it_demo.hdf5"
    add_episode(path, header("push_it"), 4, demonstration())
    for place in (path, tmp_path, parts_folder(path)):
        info = dataset_info(place)
        assert (info.format, info.episodes) == ("hdf5", 1) and "unfinished" in info.remarks[0]
        assert len(list(read_episodes(place))) == 1


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DatasetError, match="there is no dataset"):
        dataset_info(tmp_path / "nowhere")
    for place in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(DatasetError, match="is none of the formats that we read"):
            dataset_info(place)
    with pytest.raises(DatasetError, match="there is no format 'zip'; choose one of: hdf5, lerobot, rlds"):
        convert(tmp_path, tmp_path / "x", "zip")


def convert_on_a_full_disk(source: Path, target: Path, to: str) -> None:
    """Runs in a process of its own, whose files cannot grow past 8 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
    try:
        convert(source, target, to)
    except DatasetError as error:
        print(error)


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing_half_done(to: str, source: tuple[Path, list[Demonstration]], tmp_path: Path) -> None:
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_formats"
    code += "; test_formats.convert_on_a_full_disk(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4])"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(source[0]), str(tmp_path / "set"), to]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"cannot write {tmp_path / 'set'} ("), result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []
    assert len(list(read_episodes(source[0]))) == 3
