"""The pool on the pendulum: numbers, refusals, starts, and what it leaves behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.sim import EpisodeSpec, SimError
from vla_rl.sim.pool import SimPool

BACKEND = "pendulum_backend:PendulumBackend"
HERE = Path(__file__).parent


def make(num_envs: int = 2, num_workers: int | None = 1, cameras: tuple[str, ...] = ("front",), **options: Any) -> SimPool:
    return SimPool(BACKEND, num_envs=num_envs, num_workers=num_workers, cameras=cameras, image_size=32, options=options)


def still(sim: SimPool, length: int) -> np.ndarray:
    return np.zeros((sim.num_envs, length, sim.action_dim), np.float32)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(pids: list[int], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(is_alive(pid) for pid in pids)


def test_a_time_limit_by_hand() -> None:
    """A limit of 10 steps in chunks of 4: 4, 4, 2 actions run; truncated, not terminated. Frames: 2 rows x 2 cameras at
    the reset, 4 in each of two full turns; in the third turn row 1 (limit 8) has finished: 2. The fourth renders none."""
    with make(cameras=("front", "side")) as sim:
        sim.reset([EpisodeSpec("pendulum", 10, init_state_id=0), EpisodeSpec("pendulum", 8, init_state_id=0)])
        turns = [sim.step_chunk(still(sim, 4)) for _ in range(4)]
        assert [turn.executed.sum(axis=1).tolist() for turn in turns] == [[4, 4], [4, 4], [2, 0], [0, 0]]
        assert turns[2].executed[0].tolist() == [True, True, False, False]
        assert [turn.truncated.tolist() for turn in turns] == [[False] * 2, [False, True], [True] * 2, [True] * 2]
        assert not any(turn.terminated.any() or turn.success.any() for turn in turns)
        assert sim.frames_rendered == 4 + 4 + 4 + 2
        timings = dict(sim.timings)
        assert (timings["env_steps"], timings["turns"], timings["frames"]) == (18, 5, 14)
        assert 0 < timings["simulation"] < 10 and 0 < timings["rendering"] < 60 and timings["reset"] > 0


def test_a_success_by_hand() -> None:
    """Gravity and inertia in MuJoCo's units are left aside: full torque of 40 Nm lifts the 1 m rod (about 8 kg, weight
    moment below 40 Nm) all the way, so the episode ends with reward 1 at its last executed action, and -0.1 before."""
    with make(1) as sim:
        sim.reset([EpisodeSpec("pendulum", 400, init_state_id=0)])
        turn = sim.step_chunk(np.ones((1, 400, 1), np.float32))
        count = int(turn.executed.sum())
        assert 2 < count < 400 and turn.executed[0, :count].all()
        assert turn.success.tolist() == turn.terminated.tolist() == [True] and turn.truncated.tolist() == [False]
        np.testing.assert_array_equal(turn.rewards[0, : count - 1], np.float32(-0.1))
        assert turn.rewards[0, count - 1] == 1 and not turn.rewards[0, count:].any()
        assert np.cos(turn.observation.proprio[0, 0]) < -0.9


def test_a_success_at_the_last_allowed_step_is_no_truncation() -> None:
    chunk = np.ones((1, 400, 1), np.float32)
    with make(1) as sim:
        sim.reset([EpisodeSpec("pendulum", 400, init_state_id=0)])
        count = int(sim.step_chunk(chunk).executed.sum())
        for limit, ends in ((count, [True, False]), (count - 1, [False, True])):
            sim.reset([EpisodeSpec("pendulum", limit, init_state_id=0)])
            turn = sim.step_chunk(chunk)
            assert [turn.terminated[0], turn.truncated[0]] == ends and turn.executed.sum() == limit


def test_chunks_of_any_length_make_the_same_episode() -> None:
    """Also longer than the memory that was first laid out for them."""
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (1, 120, 1)).astype(np.float32)
    ends = []
    with make(1) as sim:
        for length in (1, 7, 40, 120, 500):
            sim.reset([EpisodeSpec("pendulum", 120, init_state_id=3)])
            for start in range(0, 120, length):
                chunk = actions[:, start : start + length]
                turn = sim.step_chunk(np.pad(chunk, ((0, 0), (0, max(0, length - 120)), (0, 0))))
            assert turn.truncated.all()
            ends.append(turn.observation.proprio.tobytes())
    assert len(set(ends)) == 1


def test_nan_is_refused_by_name_before_anything_moves() -> None:
    with make(3, 2) as sim:
        sim.reset([EpisodeSpec("pendulum", 20)] * 2)
        states = [sim.save_state(row) for row in range(2)]
        chunk = still(sim, 5)
        chunk[1, 3, 0] = np.nan
        with pytest.raises(SimError, match="environment 1: action 3 of the chunk is nan in dimension 0; no row has moved"):
            sim.step_chunk(chunk)
        assert [sim.save_state(row) for row in range(2)] == states and sim.timings["env_steps"] == 0


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        ([[0.0]], "not a list"),
        (np.zeros((2, 1), np.float32), r"not of shape \[2, 1\]"),
        (np.zeros((2, 0, 1), np.float32), "A at least 1"),
        (np.zeros((2, 3, 1)), "not float64; convert"),
        (np.zeros((2, 3, 1), object), "not object"),
    ],
)
def test_malformed_actions(actions: Any, complaint: str, shared_sim: SimPool) -> None:
    with pytest.raises(SimError, match=complaint) as caught:
        shared_sim.step_chunk(actions)
    assert "\n" not in str(caught.value) and "[2, A, 1]" in str(caught.value)


@pytest.mark.parametrize(
    ("specs", "env_ids", "complaint"),
    [
        ([EpisodeSpec("pendulum", 5)] * 3, None, "3 episode specs are too many for 2 environments"),
        ([EpisodeSpec("pendulum", 5)], [2], "no environment 2"),
        ([EpisodeSpec("pendulum", 5)], [-1], "no environment -1"),
        ([EpisodeSpec("pendulum", 5)], ["a"], "not 'a'"),
        ([EpisodeSpec("pendulum", 5)] * 2, [1, 1], "one episode at a time"),
        ([EpisodeSpec("pendulum", 5)], [0, 1], "one spec per row"),
        ([EpisodeSpec("pendulum", "5")], None, "whole numbers"),
        (["pendulum"], None, "EpisodeSpec"),
        (EpisodeSpec("pendulum", 5), None, "a list of episode specs"),
        ([EpisodeSpec("pendulum", -3)], None, "environment 0: .* not -3"),
    ],
)
def test_malformed_resets(specs: Any, env_ids: Any, complaint: str, shared_sim: SimPool) -> None:
    with pytest.raises(SimError, match=complaint) as caught:
        shared_sim.reset(specs, env_ids)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shared_sim() -> Any:
    with make() as sim:
        yield sim


def test_numpy_numbers_name_rows_and_episodes(shared_sim: SimPool) -> None:
    spec = EpisodeSpec("pendulum", np.int64(9), np.int32(2), np.uint8(3))  # type: ignore[arg-type]
    observation = shared_sim.reset([spec], np.array([1]))  # type: ignore[arg-type]
    assert observation.instruction[1] == "swing up within 9 steps"
    np.testing.assert_allclose(observation.proprio[1], [0.2, 0.0], rtol=1e-6)


def test_a_state_of_another_simulator_or_format_is_refused(shared_sim: SimPool) -> None:
    shared_sim.reset([EpisodeSpec("pendulum", 9)])
    state = shared_sim.save_state(0)
    for wrong in (state[:-1], state + b"\x00", b"", state.replace(BACKEND.encode(), BACKEND.replace("p", "q").encode())):
        with pytest.raises(SimError) as caught:
            shared_sim.load_state(0, wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"options": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"options": {"hang_timeout": 0}}, "hang_timeout must be a positive number"),
        ({"options": {"fault_file": Path("x")}}, "plain values"),
        ({"options": {"python": "/no/such/python"}}, "python='/no/such/python'"),
        ({"options": {"python": "/bin/true"}}, "exited with status 0"),
        ({"options": {"python": "/bin/ls"}}, "exited with status 2: "),
        ({"cameras": ("front", "front")}, "once"),
        ({"cameras": ("top",)}, "there is no camera 'top'; choose front or side"),
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1, not 0"),
        ({"num_workers": -1}, "num_workers must be"),
        ({"image_size": 1.5}, "image_size must be"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SimError, match=complaint) as caught:
        SimPool(BACKEND, **{"num_envs": 1, "image_size": 32, "cameras": ("front",), **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["no_such_module:Backend", "pendulum_backend:Nothing"])
def test_a_backend_that_cannot_be_imported(backend: str) -> None:
    with pytest.raises(SimError, match=r"no_such_module|Nothing") as caught:
        SimPool(backend, num_envs=1)
    assert "\n" not in str(caught.value)


def test_another_interpreter_runs_the_workers(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch "{tmp_path}/used"\nexec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    paths = os.pathsep.join(path for path in [str(HERE), *sys.path] if path)
    with make(1, python=str(python), environment={"PYTHONPATH": paths}) as sim:
        assert sim.reset([EpisodeSpec("pendulum", 9)]).instruction == ["swing up within 9 steps"]
    assert (tmp_path / "used").exists()


def test_the_worker_imports_no_torch_and_no_pool() -> None:
    code = "import sys, vla_rl.sim.worker; print({'torch', 'mujoco', 'vla_rl.sim.pool'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_workers_have_their_own_cores_and_one_thread() -> None:
    with make(2, 2) as sim:
        cores = [os.sched_getaffinity(pid) for pid in sim.worker_pids if pid is not None]
        if len(os.sched_getaffinity(0)) >= 2:
            assert not cores[0] & cores[1]
        environment = Path(f"/proc/{sim.worker_pids[0]}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=1" in environment and any(entry.startswith(b"MUJOCO_GL=") for entry in environment)


def test_devices_are_shared_out_over_the_workers() -> None:
    with make(3, 3, devices=[0, 0], environment={"EXTRA": "1"}, pin_cpus=False) as sim:
        assert sim.reset([EpisodeSpec("pendulum", 9)] * 3).images["front"].any(axis=(1, 2, 3)).all()
        for pid in sim.worker_pids:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert b"MUJOCO_EGL_DEVICE_ID=0" in environment and b"EXTRA=1" in environment
            assert os.sched_getaffinity(pid or 0) == os.sched_getaffinity(0)


def test_nothing_is_left_behind() -> None:
    make().close()  # whatever Python opens once
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    mapped = Path("/proc/self/maps").read_text().count("vla_rl_sim")
    sim = make(2, 2)
    assert Path("/proc/self/maps").read_text().count("vla_rl_sim") > mapped
    pids = [pid for pid in sim.worker_pids if pid is not None]
    sim.reset([EpisodeSpec("pendulum", 30)] * 2)
    os.kill(pids[0], signal.SIGKILL)
    sim.step_chunk(still(sim, 40))
    pids += [pid for pid in sim.worker_pids if pid is not None]
    sim.close()
    sim.close()
    assert len(set(pids)) == 3 and not any(is_alive(pid) for pid in pids)
    assert sorted(os.listdir("/proc/self/fd")) == before
    for request in (lambda: sim.reset([]), lambda: sim.step_chunk(np.zeros((2, 1, 1), np.float32)), lambda: sim.save_state(0)):
        with pytest.raises(SimError, match="closed"):
            request()
    assert Path("/proc/self/maps").read_text().count("vla_rl_sim") == mapped


def test_a_forgotten_simulator_closes_itself() -> None:
    sim = make(1)
    pids = [pid for pid in sim.worker_pids if pid is not None]
    del sim
    gc.collect()
    assert wait_for_end(pids)


SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    sys.path.insert(0, {here!r})
    from vla_rl.sim import EpisodeSpec
    from vla_rl.sim.pool import SimPool

    def step():
        sim.step_chunk(np.zeros((2, 4, 1), np.float32))

    sim = SimPool("pendulum_backend:PendulumBackend", num_envs=2, num_workers=2, cameras=("front",), image_size=32)
    pids = sim.worker_pids
    print(*pids, flush=True)
    sim.reset([EpisodeSpec({suite!r}, 50)] * 2)
    {action}
"""


def run_parent(suite: str, action: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process of its own that makes a simulator with two workers and then does `action`; their process ids."""
    script = textwrap.dedent(SCRIPT).format(here=str(HERE), suite=suite, action=action)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, **pipes)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    return parent, pids


@pytest.mark.parametrize(
    ("suite", "action", "blow"),
    [
        ("pendulum", "time.sleep(60)", signal.SIGKILL),
        ("hang in step 1", "step()", signal.SIGKILL),
        ("hang in step 1", "step()", signal.SIGINT),
        ("pendulum", "time.sleep(60)", signal.SIGTERM),
    ],
)
def test_workers_end_with_a_parent_that_is_killed(suite: str, action: str, blow: signal.Signals) -> None:
    parent, pids = run_parent(suite, action)
    time.sleep(1.0)
    os.killpg(parent.pid, blow)
    _, errors = parent.communicate(timeout=30)
    assert wait_for_end(pids)
    if blow is signal.SIGINT:
        assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("action", ["sys.exit(3)", "os.kill(pids[0], signal.SIGSTOP); sys.exit(3)"])
def test_workers_end_with_a_parent_that_exits(action: str) -> None:
    parent, pids = run_parent("pendulum", action)
    _, errors = parent.communicate(timeout=30)
    assert wait_for_end(pids) and parent.returncode == 3 and not errors


def test_a_forked_child_that_exits_leaves_the_workers_alone() -> None:
    action = "pid = os.fork(); pid or sys.exit(3); os.waitpid(pid, 0); step(); sys.exit(0 if sim.worker_pids == pids else 1)"
    parent, pids = run_parent("pendulum", action)
    _, errors = parent.communicate(timeout=30)
    assert wait_for_end(pids) and parent.returncode == 0 and not errors
