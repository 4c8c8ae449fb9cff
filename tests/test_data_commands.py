"""`vla-rl data` at the command line: what it prints, exit codes, and one line for what a user can get wrong."""

import json
import sys
from pathlib import Path

import pytest
from small_sets import write_small

from vla_rl.cli import main
from vla_rl.data.formats import dataset_info


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["vla-rl", "data", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_from_hdf5_to_a_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_small(tmp_path / "demos")
    code, out, _ = run(capsys, monkeypatch, "info", tmp_path / "demos")
    assert code == 0 and "3 episodes (2 successes), 36 steps" in out and "gripper: -1_opens_+1_closes" in out
    code, out, _ = run(capsys, monkeypatch, "convert", tmp_path / "demos", tmp_path / "set", "--to", "lerobot", "--frames", "png")
    assert code == 0 and "3 episodes, 36 steps" in out and "frames rotated_180, 20 Hz" in out
    assert "left out, for lerobot has no place for them: model_xml, states" in out
    assert "actions are the same to the bit" in out
    code, out, _ = run(capsys, monkeypatch, "verify", tmp_path / "set")
    assert code == 0 and "3 episodes and 36 steps read, schema checked" in out
    assert ("only the schema was checked" in out) != ("opened with lerobot" in out)
    (tmp_path / "set/meta/stats.json").write_text("{}")
    code, out, _ = run(capsys, monkeypatch, "verify", tmp_path / "set")
    assert code == 1 and "wrong: stats.json lacks" in out
    code, out, _ = run(capsys, monkeypatch, "info", tmp_path / "set", "--json")
    assert json.loads(out)["episodes"] == 3
    code, out, _ = run(capsys, monkeypatch, "report", tmp_path / "set", "--chunk", "4")
    assert code == 0 and str(tmp_path / "set-report.html") in out
    numbers = json.loads((tmp_path / "set-report.json").read_text())
    assert len(numbers["episodes"]) == 3 and numbers["episodes"][0]["chunk_jump"] > 0


def test_what_is_written_can_be_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_small(tmp_path / "demos")
    words = ("convert", tmp_path / "demos", tmp_path / "small_set", "--to", "rlds", "--store", "gripper=1_opens_0_closes")
    code, out, _ = run(capsys, monkeypatch, *words, "--camera", "agentview", "--limit", "1", "--quality", "80")
    assert code == 0 and "2 episodes, 27 steps" in out
    info = dataset_info(tmp_path / "small_set")
    assert list(info.cameras) == ["agentview"] and info.convention.gripper == "1_opens_0_closes"


def test_what_a_user_can_get_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_small(tmp_path / "demos")
    demos, target = tmp_path / "demos", tmp_path / "set"
    cases = [
        (("info", tmp_path / "nowhere"), "there is no dataset"),
        (("info", tmp_path), "is none of the formats"),
        (("info", demos, "--stated", "gripper=thumb"), "the dataset itself states gripper"),
        (("convert", demos, target, "--to", "zip"), "there is no format 'zip'"),
        (("convert", demos, target, "--to", "lerobot", "--store", "frames=sideways"), "frames convention 'sideways' is unknown"),
        (("convert", demos, target, "--to", "lerobot", "--store", "thumb=up"), "thumb"),
        (("convert", demos, target, "--to", "lerobot", "--frames", "gif"), "choose video or png"),
        (("convert", demos, target, "--to", "hdf5", "--camera", "birdview"), "no frames of camera 'birdview'"),
        (("convert", demos, demos, "--to", "rlds"), "exists already"),
        (("verify", demos, "--python", tmp_path / "python"), "cannot be started"),
        (("report", demos, "-o", demos / "lift_it_demo.hdf5" / "page.html"), "cannot write the report"),
    ]
    for words, message in cases:
        code, _, error = run(capsys, monkeypatch, *words)
        assert code == 2, words
        assert message in error and error.count("\n") == 1 and "Traceback" not in error, (words, error)
    assert not target.exists()
