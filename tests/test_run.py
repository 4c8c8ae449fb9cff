import json
from pathlib import Path

import pytest

from vla_rl.config import ConfigError
from vla_rl.config_files import load_config
from vla_rl.run import Run, RunError, choose_device, config_of, place_of


def config(tmp_path: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return load_config(None, [f"run.root={tmp_path}", "run.name=a", *overrides])


def test_a_run_directory_says_what_it_is(tmp_path: Path) -> None:
    with Run(config(tmp_path, "rl.gamma=0.9")) as run:
        assert load_config(config_of(run.directory)).rl.gamma == 0.9
        assert "torch" in json.loads((run.directory / "environment.json").read_text())["versions"]


def test_a_run_continues_under_the_same_configuration_only(tmp_path: Path) -> None:
    Run(config(tmp_path, "rl.gamma=0.1")).close()
    with Run(config(tmp_path)) as run:  # nothing was made yet, so anything may change
        (run.checkpoints("sft") / "step_000001").mkdir(parents=True)
    Run(config(tmp_path, "rl.iterations=99", "sim.num_workers=1")).close()  # longer and elsewhere, but the same experiment
    with pytest.raises(RunError, match=r"other values of rl\.gamma, sft\.steps; set run\.name"):
        Run(config(tmp_path, "rl.gamma=0.5", "sft.steps=3"))
    with pytest.raises(RunError, match="exists already"):
        Run(config(tmp_path, "run.resume=never"))


def test_a_part_without_settings_is_another_objective(tmp_path: Path) -> None:
    with Run(config(tmp_path, "objective.regularisers.entropy={}")) as run:
        (run.checkpoints("sft") / "step_000001").mkdir(parents=True)
    with pytest.raises(RunError, match=r"other values of objective\.regularisers"):
        Run(config(tmp_path))


def test_a_run_that_stopped_stays_so_under_the_same_configuration(tmp_path: Path) -> None:
    with Run(config(tmp_path)) as run:
        assert not run.stopped
        run.stop("nothing left to learn")
        assert run.stopped and (run.directory / "stopped.txt").read_text() == "nothing left to learn"
    with Run(config(tmp_path, "rl.iterations=99")) as run:
        assert run.stopped, "more iterations would only repeat it"
    with Run(config(tmp_path, "rl.gamma=0.5")) as run:
        assert not run.stopped


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Run(config(tmp_path)), pytest.raises(RunError, match="another process is at work"):
        Run(config(tmp_path))
    Run(config(tmp_path)).close()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the run directory .*set run\.root"):
        Run(load_config(None, [f"run.root={tmp_path / 'file'}"]))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run"):
        config_of(tmp_path)


def test_a_run_directory_that_was_moved_continues_where_it_is(tmp_path: Path) -> None:
    with Run(config(tmp_path / "before")) as run:
        (run.checkpoints("sft") / "step_000001").mkdir(parents=True)
    moved = tmp_path / "007"  # a name that YAML would read as a number
    (tmp_path / "before" / "a").rename(moved)
    found = load_config(config_of(moved), place_of(moved))
    assert found.run.root / found.run.name == moved
    Run(found).close()
    assert place_of(config_of(moved)) == place_of(None) == []


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match=r"^run\.device is .* set run\.device=auto$"):
            choose_device(name)
