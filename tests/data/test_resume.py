"""What a killed process leaves behind, and who clears it up."""

import os
import subprocess
from pathlib import Path

from test_libero_hdf5 import HEADER, make_demonstration

from vla_rl.data.dataset import new_folder
from vla_rl.data.libero_hdf5 import add_episode, finished_parts, write_demonstrations
from vla_rl.data.resume import finished_episodes


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_collection_that_goes_on_clears_what_a_kill_left_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "task_demo.hdf5"
    header = type(HEADER)(**vars(HEADER) | {"extra": {"collection": "{}"}})
    write_demonstrations(path, header, [make_demonstration()])
    add_episode(path, header, 1, make_demonstration())
    dead = [tmp_path / f"task_demo.hdf5.{ended()}.tmp", tmp_path / "task_demo.hdf5.parts" / f"episode_000002.hdf5.{ended()}.tmp"]
    # Another process may be writing these: its parent's is one that lives.
    alive = [tmp_path / f"task_demo.hdf5.{os.getppid()}.tmp", tmp_path / f"other_demo.hdf5.{ended()}.tmp"]
    for file in dead + alive:
        file.write_bytes(b"\x89HDF half a file")
    assert finished_episodes(path, "{}", 4) == {0, 1} == set(finished_parts(path))
    assert [file.exists() for file in dead + alive] == [False, False, True, True]


def test_a_new_data_set_clears_what_a_kill_left_of_it(tmp_path: Path) -> None:
    dead, alive = tmp_path / f".soup.{ended()}.partial", tmp_path / f".soup.{os.getppid()}.partial"
    for folder in (dead, alive):
        (folder / "meta").mkdir(parents=True)
    with new_folder(tmp_path / "soup"):
        pass
    assert sorted(place.name for place in tmp_path.iterdir()) == [alive.name, "soup"]
