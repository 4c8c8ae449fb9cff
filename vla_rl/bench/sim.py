"""`vla-rl bench sim`: speed, reset time and memory of our simulator and of what it replaces, side by side in one run.

Every system lives in a process of its own and steps the same actions from the same initial states. Repeats take turns:
what else the machine does hits all of them, and ratios are taken within a repeat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from vla_rl.bench.hosted import HostedSystem
from vla_rl.bench.peer_systems import INSTALL_RLINF, rlinf_is_there
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.bench.systems import TITLES
from vla_rl.progress import Progress
from vla_rl.sim.base import SimError

OURS = ("fast", "exact", "blind", "physics", "bare")
PEERS = ("libero", "rlinf", "robosuite")
VECTORS = ("fast", "exact", "blind", "libero", "rlinf")
"""Systems of all environments; the others run one on one core."""
SCALES = (1, 8, 16, 32, 64)
_FURTHER = 24
"""Environments by whose addition their memory is measured: that of one would drown in noise."""


@dataclass
class Measurement:
    """What was measured of one system; lists run over the repeats."""

    name: str
    rates: list[float] = field(default_factory=list)
    """Env-steps/s."""
    cpu_rates: list[float] = field(default_factory=list)
    """Env-steps per second of CPU time, over all processes of the system: does not depend on what else runs."""
    foreign_cores: list[float] = field(default_factory=list)
    """CPU cores that other processes used meanwhile."""
    resets: dict[str, list[float]] = field(default_factory=dict)
    """Seconds a reset of one environment: "settled", "unsettled"."""
    construction_seconds: float | None = None
    """Until the first observation."""
    mib_per_env: float | None = None
    """Memory of a further environment."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of simulation and rendering, and counts, over all repeats."""
    problem: str | None = None
    """Why it could not be measured."""

    @property
    def title(self) -> str:
        return TITLES[self.name]


@dataclass(frozen=True)
class ScalePoint:
    """Our fast pictures with some number of environments."""

    num_envs: int
    rates: list[float]
    """Env-steps/s, by repeat."""
    memory_mib: float | None
    """Of all processes."""


@dataclass(frozen=True)
class SimBenchmark:
    """All that one run has found."""

    settings: SimSettings
    measurements: dict[str, Measurement]
    scaling: list[ScalePoint]


def measure(
    settings: SimSettings, seconds: float = 20.0, repeats: int = 5, peers: Sequence[str] = PEERS, scaling: bool = False
) -> SimBenchmark:
    """Measure every system for about `seconds` in `repeats` turns; a peer takes at least a chunk a turn.

    A peer that is missing or fails becomes a row that says so. Raises `SimError` where one of ours fails.
    """
    names = [name for name in TITLES if name in OURS or name in peers]
    total = len(names) * (repeats + 2) + 1 + (len(SCALES) * (repeats + 1) if scaling else 0)
    found = {name: Measurement(name) for name in names}
    with Progress("bench sim", total) as progress, contextlib.ExitStack() as stack:
        hosts: dict[str, HostedSystem] = {}
        for name in names:
            with _noted(found[name], progress, "started"):
                hosts[name] = stack.enter_context(_start(name, settings))
                found[name].construction_seconds = hosts[name].construction_seconds
        for _ in range(repeats):
            for name, host in list(hosts.items()):
                with _noted(found[name], progress, "stepped", hosts):
                    _step(host, found[name], seconds / repeats)
        for name, host in list(hosts.items()):
            with _noted(found[name], progress, "reset", hosts):
                if name != "bare":
                    found[name].resets = host.ask("reset_times")
                if name in ("libero", "rlinf") and (mib := host.memory_mib()) is not None:
                    found[name].mib_per_env = mib / settings.num_envs
        points = _scale(settings, seconds, repeats, progress) if scaling else []
        found["fast"].mib_per_env = _further_mib(settings)
        progress.advance("memory measured")
    return SimBenchmark(settings, found, points)


def _start(name: str, settings: SimSettings) -> HostedSystem:
    if name == "rlinf" and not rlinf_is_there():
        raise SimError(f"not installed: {INSTALL_RLINF}")
    return HostedSystem(name, settings if name in VECTORS else settings.with_envs(1))


@contextlib.contextmanager
def _noted(
    measurement: Measurement, progress: Progress, what: str, hosts: dict[str, HostedSystem] | None = None
) -> Iterator[None]:
    """Write a peer's failure down, and leave it out from now on; ours are raised."""
    try:
        yield
        progress.advance(f"{measurement.title} {what}")
    except SimError as error:
        if measurement.name in OURS:
            raise
        measurement.problem = str(error)
        progress.advance(f"{measurement.title}: {error}")
        if hosts is not None:
            del hosts[measurement.name]


def _step(host: HostedSystem, measurement: Measurement, seconds: float) -> None:
    used = host.ask("run", seconds=seconds)
    steps, spent, cpu = used.pop("env_steps"), used.pop("seconds"), used.pop("cpu_seconds")
    measurement.rates.append(steps / spent)
    if cpu > 0:
        measurement.cpu_rates.append(steps / cpu)
    if (machine := used.pop("machine_cpu_seconds", None)) is not None:
        measurement.foreign_cores.append(max(0.0, (machine - cpu) / spent))
    for part, amount in used.items():
        measurement.parts[part] = measurement.parts.get(part, 0.0) + amount


def _further_mib(settings: SimSettings) -> float | None:
    """MiB that a further environment adds, its frames included, by comparing simulators that are otherwise the same."""
    amounts = []
    for num_envs in (settings.num_envs, settings.num_envs + _FURTHER):
        larger = replace(settings, num_envs=num_envs)
        with HostedSystem("fast", larger) as host:
            host.ask("run", seconds=0)
            amounts.append(host.memory_mib())
    few, many = amounts
    return None if few is None or many is None else (many - few) / _FURTHER


def _scale(settings: SimSettings, seconds: float, repeats: int, progress: Progress) -> list[ScalePoint]:
    points = []
    with contextlib.ExitStack() as stack:
        hosts = []
        for num_envs in SCALES:
            hosts.append(stack.enter_context(HostedSystem("fast", settings.with_envs(num_envs))))
            progress.advance(f"{num_envs} environments started")
        found = [Measurement("fast") for _ in hosts]
        for _ in range(repeats):
            for num_envs, host, measurement in zip(SCALES, hosts, found, strict=True):
                _step(host, measurement, seconds / repeats)
                progress.advance(f"{num_envs} environments stepped")
        for num_envs, host, measurement in zip(SCALES, hosts, found, strict=True):
            points.append(ScalePoint(num_envs, measurement.rates, host.memory_mib()))
    return points
