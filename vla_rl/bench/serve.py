"""Latency of a policy server, measured as a user meets it: `vla-rl serve` in a process of its own, clients in this one.

Legend: H x W image size, P proprioception size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vla_rl.config import ConfigError
from vla_rl.machine import describe_machine
from vla_rl.policies import load_policy
from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.run import choose_device, set_threads
from vla_rl.types import Observation
from vla_rl.wire import TOKEN_VARIABLE, PolicyClient

WARM_UP = 10
"""Requests of each client that do not count."""


@dataclass(frozen=True)
class Latency:
    """Round trips of some clients that ask as fast as they are answered."""

    clients: int
    requests: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float
    mean_batch: float
    infer_ms: float
    """Median time of the forward pass that a request was part of."""
    queue_ms: float
    """Median time that a request waited for its batch."""


@dataclass(frozen=True)
class ServeBenchmark:
    policy: str
    image_size: int
    local_p50_ms: float
    """`Policy.act` of one observation in this process, without a server."""
    local_p99_ms: float
    latencies: list[Latency]


def client_counts(text: str) -> list[int]:
    """ "1,8" -> [1, 8]. Raises `ConfigError` for anything else."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(f"--clients takes numbers such as 1,2,4,8, not {text!r}")
    return counts


def measure(
    path: Path | None, overrides: Sequence[str], clients: Sequence[int], requests: int, image_size: int
) -> ServeBenchmark:
    """Serve the policy of `path`, or a new tiny one, with settings of the server, and ask it from each number of clients."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            _tiny_policy().save(Path(folder))
        policy = load_policy(path or folder, choose_device("auto"))
        observation = _observation(policy, image_size)
        local = _local(policy, observation, requests)
        limits = ["port=0", "max_requests_per_s=1e9", f"max_connections={max(clients)}"]
        with served(path or Path(folder), [*limits, *overrides]) as (url, _):
            latencies = [_ask(url, observation, count, requests) for count in clients]
    return ServeBenchmark(str(path.name) if path else "tiny, random weights", image_size, *local, latencies)


@contextmanager
def served(path: Path, overrides: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`vla-rl serve` as a process: its address and itself. It is ended when the block is left.

    Raises `ConfigError` with the server's last words where it does not start.
    """
    command = [sys.executable, "-m", "vla_rl.cli", "serve", str(path), *overrides]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                words = log.read().strip().splitlines() or [f"exit code {process.returncode}"]
                raise ConfigError(f"the server did not start: {words[-1].removeprefix('error: ')}")
            yield line.split()[-1], process
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def _tiny_policy() -> OpenVLAPolicy:
    """LIBERO's sizes: two cameras, 8 numbers of proprioception, chunks of 8 actions of 7."""
    return build_policy(
        "tiny",
        cameras=("agentview", "robot0_eye_in_hand"),
        chunk_length=8,
        action_dim=7,
        proprio_dim=8,
        instructions=("pick up the alphabet soup and place it in the basket",),
        statistics=ActionStatistics.unit(7),
        seed=0,
    )


def _observation(policy: OpenVLAPolicy, image_size: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    images = {f"images/{camera}": draw.integers(0, 256, shape, dtype=np.uint8) for camera in policy.cameras}
    state = np.zeros(policy.config.proprio_dim, np.float32)
    return images | {"proprio": state, "instruction": "pick up the alphabet soup and place it in the basket"}


def _local(policy: OpenVLAPolicy, request: dict[str, Any], repeats: int) -> tuple[float, float]:
    """p50 and p99 (ms) of acting on one observation, with the threads that a server has by default."""
    set_threads(0)
    observation = Observation(
        images={camera: request[f"images/{camera}"][None] for camera in policy.cameras},
        proprio=request["proprio"][None],
        instruction=[request["instruction"]],
    )
    times = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        policy.act(observation, 0.0)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.percentile(times[WARM_UP:], 50)), float(np.percentile(times[WARM_UP:], 99))


def _ask(url: str, observation: dict[str, Any], count: int, requests: int) -> Latency:
    """Round trips of `count` clients at once, of `requests` each."""
    times = np.zeros((count, requests))
    timings: list[dict[str, float]] = []
    together = threading.Barrier(count + 1)

    def work(index: int, client: PolicyClient) -> None:
        for _ in range(WARM_UP):
            client.infer(observation)
        together.wait()
        for number in range(requests):
            start = time.perf_counter()
            answer = client.infer(observation)
            times[index, number] = 1000 * (time.perf_counter() - start)
            timings.append(answer["server_timing"])

    with ExitStack() as stack:
        token = os.environ.get(TOKEN_VARIABLE)
        clients = [stack.enter_context(PolicyClient(url, token)) for _ in range(count)]
        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(clients)]
        for thread in threads:
            thread.start()
        together.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start

    def median(key: str) -> float:
        return float(np.median([timing[key] for timing in timings]))

    return Latency(
        clients=count,
        requests=times.size,
        p50_ms=float(np.percentile(times, 50)),
        p99_ms=float(np.percentile(times, 99)),
        requests_per_s=times.size / seconds,
        mean_batch=float(np.mean([timing["batch_size"] for timing in timings])),
        infer_ms=median("infer_ms"),
        queue_ms=median("queue_ms"),
    )


def tables(found: ServeBenchmark) -> list[Table]:
    """A row for each number of clients."""
    table = Table(title=f"policy server: {found.policy}, images of {found.image_size} px")
    for heading in ("clients", "p50 ms", "p99 ms", "requests/s", "mean batch", "forward pass ms", "wait ms"):
        table.add_column(heading, justify="right")
    table.add_row("none (local)", f"{found.local_p50_ms:.1f}", f"{found.local_p99_ms:.1f}", *"----")
    for one in found.latencies:
        times = [f"{value:.1f}" for value in (one.p50_ms, one.p99_ms)]
        rest = [f"{one.requests_per_s:.0f}", f"{one.mean_batch:.1f}", f"{one.infer_ms:.1f}", f"{one.queue_ms:.1f}"]
        table.add_row(str(one.clients), *times, *rest)
    return [table]


def to_dict(found: ServeBenchmark) -> dict[str, Any]:
    """What is written as JSON, with the machine that it was measured on."""
    return {"benchmark": "serve", "machine": describe_machine(), **asdict(found)}
