"""The log is only ever added to."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from vla_rl.robot.record import RobotLog, read_log


def test_records_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "robot.jsonl"
    with RobotLog(path) as log:
        log.write({"tick": 1, "command": np.array([0.5, math.nan]), "clips": ("speed",), "ages": {"scan": math.inf}})
        log.write({"event": "end"}, durable=True)
    first, second = list(read_log(path))
    assert first == {"tick": 1, "command": [0.5, None], "clips": ["speed"], "ages": {"scan": None}}
    assert second == {"event": "end"}


def test_a_log_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "robot.jsonl"
    path.write_text(json.dumps({"tick": 1}) + '\n{"tick": 2, "com')
    before = path.read_bytes()
    with RobotLog(path) as log:
        log.write({"tick": 3})
    assert path.read_bytes().startswith(before), "nothing that was written is changed"
    assert [record["tick"] for record in read_log(path)] == [1, 3]


def test_a_line_that_fits_in_part_is_an_error_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk does that is filling up: it takes what still fits."""
    path, write = tmp_path / "robot.jsonl", os.write
    with RobotLog(path) as log:
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
        with pytest.raises(OSError, match="No space left on device"):
            log.write({"tick": 1})
        monkeypatch.setattr(os, "write", write)
        log.write({"tick": 2})
    assert list(read_log(path)) == [{"tick": 2}]
