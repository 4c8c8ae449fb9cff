"""Interpreters of simulators: where they are, what is said where they are missing, how they are made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vla_rl.sim import SimError, install, make_sim, mesa
from vla_rl.sim.environments import Environment, environment_folder, find_environment, package_path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))


def test_a_missing_interpreter_names_the_command() -> None:
    with pytest.raises(SimError, match="vla-rl sim install robotwin") as caught:
        make_sim("robotwin", num_envs=1)
    assert "\n" not in str(caught.value)


def test_an_interpreter_without_the_simulator_is_refused_in_one_line() -> None:
    """Ours has no SAPIEN; the worker itself says so."""
    with pytest.raises(SimError, match="this interpreter lacks sapien") as caught:
        make_sim("robotwin", num_envs=1, num_workers=1, python=sys.executable)
    assert "\n" not in caught.value.args[0]


def test_libero_runs_in_an_interpreter_that_is_named(tmp_path: Path) -> None:
    """Another name of ours stands for another interpreter: the worker gets this package and nothing else on its path."""
    other = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(other)], check=True)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (next((other / "lib").glob("python3*")) / "site-packages" / "here.pth").write_text(packages)
    sim = make_sim("libero", num_envs=1, num_workers=1, cameras=(), python=str(other / "bin" / "python"))
    sim.close()
    assert sim.action_dim == 7


def test_the_record_comes_last() -> None:
    folder = environment_folder("robotwin")
    folder.mkdir(parents=True)
    assert find_environment("robotwin") is None
    made = Environment(Path(sys.executable), {"A": "b"}, "digest")
    (folder / "environment.json").write_text(made.to_json())
    assert find_environment("robotwin") == made
    assert install.remove("robotwin") and not folder.exists() and not install.remove("robotwin")


def test_what_cannot_be_installed() -> None:
    with pytest.raises(SimError, match="no recipe for an interpreter of 'isaac'; there are some for: libero, robotwin"):
        install.install("isaac")


def test_a_failed_step_says_what_failed_and_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = install.Recipe(versions=(sys.version_info[:2],), packages=("--no-index", "no-such-package==1"))
    monkeypatch.setitem(install.RECIPES, "robotwin", recipe)
    with pytest.raises(SimError, match="installing packages failed .*no-such-package.*install.log"):
        install.install("robotwin")
    assert find_environment("robotwin") is None


def test_mesa_is_not_fetched_elsewhere_than_on_debian_12(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mesa.platform, "freedesktop_os_release", lambda: {"ID": "fedora", "VERSION_ID": "42"})
    with pytest.raises(SimError, match="a Vulkan driver is needed"):
        mesa.unpack_mesa(tmp_path, lambda words, what: None)


def test_the_package_path_holds_the_package() -> None:
    assert (Path(package_path()) / "vla_rl" / "sim" / "worker.py").exists()
