"""The processes of a robot: started together, watched, and stopped in order. No ROS: the nodes are programs."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vla_rl.config import ConfigError
from vla_rl.driving.manifest import read_manifest
from vla_rl.robot.nodes.parameters import FAKE_BASE, PARENT, WHEELED_POLICY, Parameters, Value
from vla_rl.robot.supervision import stop_signals

PATIENCE = 5.0
"""Seconds that a process gets to end by itself before it is made to."""
NODES: dict[str, tuple[str, Parameters]] = {
    "wheeled_policy": ("vla_rl.robot.nodes.wheeled_policy_node", WHEELED_POLICY),
    "fake_base": ("vla_rl.robot.nodes.fake_base_node", FAKE_BASE),
}


@dataclass(frozen=True)
class Process:
    name: str
    command: tuple[str, ...]
    output: Path
    """File that gets what it says."""


def wheeled_graph(
    export: Path | None, base: str, changes: Sequence[str], namespace: str, remappings: Sequence[str], logs: Path
) -> list[Process]:
    """The policy's node and, for `base="fake"`, the base, in the order in which they are to be stopped.

    `changes` are `NODE.NAME=VALUE`. Raises `ConfigError` and `ExportError` in one line for what a node would refuse.
    """
    folder = logs / time.strftime("%Y%m%d_%H%M%S")
    parameters: dict[str, dict[str, Value]] = {
        "wheeled_policy": {"autostart": True, "log": str(folder / "wheeled_policy.jsonl")},
        "fake_base": {"log": str(folder / "fake_base.jsonl")},
    }
    if export is not None:
        training = read_manifest(export).training
        parameters["wheeled_policy"]["export"] = str(export.resolve())
        parameters["fake_base"] |= {"task": training["sim"]["id"], "options": json.dumps(training["sim"]["options"])}
    else:
        parameters["wheeled_policy"]["robot"] = "slow"
    if base == "fake":
        parameters["wheeled_policy"]["latched_path"] = True
    for change in changes:
        node, name, value = _parse(change)
        parameters[node][name] = value
    chosen = ["wheeled_policy", "fake_base"] if base == "fake" else ["wheeled_policy"]
    made = []
    for name in chosen:
        names = remappings if name == "wheeled_policy" else ()
        made.append(Process(name, node_command(name, parameters[name], namespace, names), folder / f"{name}.txt"))
    return made


def node_command(node: str, parameters: dict[str, Value], namespace: str = "", remappings: Sequence[str] = ()) -> tuple[str, ...]:
    """The command that starts a node of `NODES`."""
    words = [sys.executable, "-m", NODES[node][0], "--ros-args"]
    if namespace:
        words += ["-r", f"__ns:=/{namespace.strip('/')}"]
    for remapping in remappings:
        words += ["-r", remapping]
    for name, value in parameters.items():
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return tuple(words)


def _parse(change: str) -> tuple[str, str, Value]:
    key, separator, text = change.partition("=")
    node, _, name = key.partition(".")
    if not separator or node not in NODES:
        raise ConfigError(f"cannot read --set {change!r}; write NODE.NAME=VALUE, where NODE is {' or '.join(NODES)}")
    known = NODES[node][1]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"the node {node!r} has no parameter {name!r}; {hint}")
    default = known[name][0]
    try:
        value = text if isinstance(default, str) else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that no calendar has
        raise ConfigError(f"{key} is a {type(default).__name__}, not {text!r}") from None
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{key} is a {type(default).__name__}, not {text!r}")
    return node, name, value


def run_graph(processes: Sequence[Process], say: Callable[[str], None]) -> int:
    """Run the processes until one of `stop_signals` or until one ends; then stop all, the first of them first.

    Returns the exit code: 0 where all ended as they were told to.
    """
    with _stop_signals() as asked, contextlib.ExitStack() as stack:
        running = {process.name: stack.enter_context(started(process, say)) for process in processes}
        say(f"logs: {processes[0].output.parent}; Ctrl-C stops the robot")
        ended: str | None = None
        while not asked.wait(0.1) and ended is None:
            ended = next((name for name, program in running.items() if program.poll() is not None), None)
        if ended is not None:
            say(f"{ended} ended with exit code {running[ended].returncode}: stopping the others")
        codes = {name: _stop(program) for name, program in running.items()}
    for name, code in codes.items():
        if code:
            say(f"{name}: exit code {code}; see {next(p.output for p in processes if p.name == name)}")
    return int(ended is not None or any(codes.values()))


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in stop_signals()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def started(process: Process, say: Callable[[str], None]) -> Iterator[subprocess.Popen[str]]:
    """Its own session: a Ctrl-C of the terminal reaches us alone, and we stop the processes in order. Where we are killed, those
    that our main thread started end by themselves; the kernel would take the end of another thread for ours."""
    ours = {PARENT: str(os.getpid())} if threading.current_thread() is threading.main_thread() else {}
    process.output.parent.mkdir(parents=True, exist_ok=True)
    program = subprocess.Popen(
        process.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **ours},
    )  # fmt: skip

    def copy() -> None:
        assert program.stdout is not None
        with process.output.open("w", encoding="utf-8") as file:
            for line in program.stdout:
                file.write(line)
                file.flush()
                with contextlib.suppress(OSError):  # the terminal is gone, and the node must not wait for it
                    say(f"{process.name}: {line.rstrip()}")

    copying = threading.Thread(target=copy, name=f"output of {process.name}")
    copying.start()
    try:
        yield program
    finally:
        _stop(program)
        copying.join()


def _stop(program: subprocess.Popen[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if program.poll() is not None:
            break
        program.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(PATIENCE)
    return program.wait()
