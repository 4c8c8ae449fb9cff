"""Bad input at the command line ends in one line that says what, where and how to mend it, and exit code 2."""

import json
import sys
from pathlib import Path

import pytest
from pendulum_run import pendulum_policy

from vla_rl.cli import main


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["vla-rl", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    return [f"run.root={tmp_path}", "run.name=a", "sim.num_envs=1", "sim.num_workers=1", "sim.cameras=[agentview]"]


def test_wrong_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, base: list[str], tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text("name: s\nvariants: {a: {rl.gama: 1}}\n")
    corrupt = tmp_path / "broken_demo.hdf5"
    corrupt.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\x00" * 100)
    cases = [
        (["train", "rl.gama=1"], "unknown key 'rl.gama'"),
        (["train", "nowhere.yaml"], "there is no configuration file nowhere.yaml"),
        (["train", *base, "task.suite=libero_spacial"], "libero_spatial"),
        (["train", *base, "task.task_ids=[77]"], "77"),
        (["train", *base, "run.device=toaster"], "run.device"),
        (["train", *base, "policy.preset=gigantic"], "no policy preset 'gigantic'"),
        (["train", *base, "sim.antialiasing=3"], "antialiasing=3"),
        (["sft", *base, f"demonstrations.path={corrupt}"], "broken_demo.hdf5"),
        (["evaluate", *base], "no policy to evaluate"),
        (["evaluate", *base, f"policy.checkpoint={tmp_path / 'none'}"], "no policy at"),
        (["report", str(tmp_path / "none")], "none"),
        (["study", "nowhere.yaml"], "nowhere.yaml"),
        (["study", str(tmp_path / "study.yaml")], "variant 'a': unknown key 'rl.gama'"),
    ]
    for words, message in cases:
        code, error = run(capsys, monkeypatch, *words)
        assert code == 2, words
        assert message in error and error.count("\n") == 1 and "Traceback" not in error, (words, error)


def test_a_checkpoint_of_another_architecture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, base: list[str], tmp_path: Path
) -> None:
    pendulum_policy().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["language"]["layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, error = run(capsys, monkeypatch, "evaluate", *base, f"policy.checkpoint={tmp_path}")
    assert code == 2 and error.count("\n") == 1
    assert "layers.1" in error, error


def test_a_policy_for_other_cameras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, base: list[str], tmp_path: Path
) -> None:
    """A policy that was trained on a pendulum's camera cannot act in LIBERO."""
    pendulum_policy().save(tmp_path)
    code, error = run(capsys, monkeypatch, "evaluate", *base, f"policy.checkpoint={tmp_path}", "evaluation.episodes=1")
    assert code == 2 and error.count("\n") == 1
    assert "front" in error and "agentview" in error, error
