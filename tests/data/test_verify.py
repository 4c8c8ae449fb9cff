"""`verify` with stand-ins for the libraries of others, and with the real ones where an interpreter has them.

Interpreters that have them are named by ROBOMIMIC_PYTHON, LEROBOT_PYTHON and TFDS_PYTHON; otherwise ours is asked.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from small_sets import demonstration, header, write_small

from vla_rl.data import DatasetError
from vla_rl.data.consumers import CONSUMERS
from vla_rl.data.formats import FORMATS, convert
from vla_rl.data.libero_hdf5 import write_demonstrations
from vla_rl.data.verify import ask_consumer, verify

PYTHONS = {"hdf5": "ROBOMIMIC_PYTHON", "lerobot": "LEROBOT_PYTHON", "rlds": "TFDS_PYTHON"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("verify")
    write_small(folder / "hdf5")
    for name in ("lerobot", "rlds"):
        convert(folder / "hdf5", folder / name, name)
    return {name: folder / name for name in FORMATS}


def stand_in(tmp_path: Path, answer: str, code: int = 0) -> str:
    """An interpreter that prints one thing whatever it is asked."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho 'libraries talk' >&2\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_real_consumer_reads_the_same_actions(kind: str, sets: dict[str, Path]) -> None:
    found = verify(sets[kind], os.environ.get(PYTHONS[kind], sys.executable))
    assert (found.format, found.episodes, found.steps, found.findings) == (kind, 3, 36, ())
    if not found.consumer:
        assert found.note.startswith(f"{CONSUMERS[kind]} is not installed here (pip install")
        pytest.skip(f"{found.note}; name an interpreter that has it in {PYTHONS[kind]}")


def test_a_consumer_that_reads_something_else_is_said(sets: dict[str, Path], tmp_path: Path) -> None:
    answer = {"consumer": "robomimic 9", "episodes": 3, "steps": 35, "actions": "0"}
    found = verify(sets["hdf5"], stand_in(tmp_path, json.dumps(answer)))
    assert found.consumer == "robomimic 9"
    assert [finding.split(":")[0] for finding in found.findings] == [
        "robomimic 9 reads other steps than we do",
        "robomimic 9 reads other actions than we do",
    ]


def test_a_consumer_that_fails_is_said(sets: dict[str, Path], tmp_path: Path) -> None:
    found = verify(sets["rlds"], stand_in(tmp_path, json.dumps({"error": "ValueError: no features"})))
    assert found.findings == ("tensorflow_datasets cannot read it: ValueError: no features",)
    assert ask_consumer("rlds", sets["rlds"], stand_in(tmp_path, "", 3)) == {"error": "it ended with code 3: libraries talk"}
    with pytest.raises(DatasetError, match="cannot be started"):
        verify(sets["hdf5"], str(tmp_path / "no_python"))


def test_the_schema_check_of_hdf5_finds(tmp_path: Path) -> None:
    whole = demonstration()
    thinned = replace(whole, images={c: f[::2] for c, f in whole.images.items()}, frame_index=whole.frame_index[::2])
    path = write_demonstrations(tmp_path / "push_it_demo.hdf5", header("push_it"), [whole, thinned])
    with h5py.File(path, "r+") as file:
        file["data"].attrs["num_demos"] = 5
        file["data"].attrs["total"] = 7
        file["data/demo_0"].attrs["num_samples"] = 3
        del file["data/demo_0/states"], file["data"].attrs["env_args"]
    assert FORMATS["hdf5"].check(path) == [
        "push_it_demo.hdf5: data lacks the attribute env_args",
        "push_it_demo.hdf5: num_demos is 5, but there are 2 episodes",
        "push_it_demo.hdf5: demo_0: num_samples is 3, but it has 12 actions",
        "push_it_demo.hdf5: demo_0 lacks states",
        "push_it_demo.hdf5: demo_1: agentview_rgb, eye_in_hand_rgb, frame_index do not have a row a step; "
        "only readers of ours can use them",
        "push_it_demo.hdf5: total is 7, but there are 24 steps",
    ]
