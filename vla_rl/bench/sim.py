"""`vla-rl bench sim`: speed, reset time and memory of our simulator and of what it replaces, side by side in one run.

Every system lives in a process of its own and steps the same actions from the same initial states. Repeats take turns:
what else the machine does hits all of them, and ratios are taken within a repeat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vla_rl.bench.hosted import HostedSystem
from vla_rl.bench.peer_systems import INSTALL_RLINF, rlinf_is_there
from vla_rl.bench.process_tree import available_mib
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.bench.systems import TITLES
from vla_rl.progress import Progress
from vla_rl.sim.base import SimError

ROUNDS = (("fast", "exact", "libero"), ("fast", "exact", "rlinf"), ("physics", "fast_physics", "robosuite", "bare"), ("blind",))
"""Systems that are alive together and take turns: all at once, the peers' processes fill the memory of a small machine."""
PEERS = ("libero", "rlinf", "robosuite")
VECTORS = ("fast", "exact", "blind", "libero", "rlinf")
"""Systems of many environments; the others run one on one core."""
_MIB_PER_PROCESS = 1800.0
"""What a process that holds LIBERO scenes may take, measured on libero_spatial and rounded up; a peer has one an environment."""
_MIB_TO_SPARE = 2048.0
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
    """Seconds a reset of one environment: "settled", "repeated" (settled before), "unsettled"."""
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

    def joined(self, other: Measurement) -> Measurement:
        """The same system, measured in two rounds."""
        return replace(
            self,
            rates=self.rates + other.rates,
            cpu_rates=self.cpu_rates + other.cpu_rates,
            foreign_cores=self.foreign_cores + other.foreign_cores,
            resets={kind: times + other.resets.get(kind, []) for kind, times in self.resets.items()},
            parts={part: amount + other.parts.get(part, 0.0) for part, amount in self.parts.items()},
        )


@dataclass(frozen=True)
class ScalePoint:
    """Our fast pictures with some number of environments."""

    num_envs: int
    rates: list[float]
    """Env-steps/s, by repeat."""
    cpu_rates: list[float]
    """Env-steps per CPU second, by repeat."""
    memory_mib: float | None
    """Of all processes."""


@dataclass(frozen=True)
class SimBenchmark:
    """All that one run has found."""

    settings: SimSettings
    peer_envs: int
    rounds: list[dict[str, Measurement]]
    scaling: list[ScalePoint]
    mib_per_env: float | None = None
    """Memory that a further environment of ours takes, its frames included."""

    @property
    def measurements(self) -> dict[str, Measurement]:
        """By system, over all rounds, in the order of the tables."""
        found: dict[str, Measurement] = {}
        for name in TITLES:
            for part in (one[name] for one in self.rounds if name in one):
                found[name] = found[name].joined(part) if name in found else part
        return found

    def side_by_side(self, ours: str, theirs: str) -> tuple[Measurement, Measurement] | None:
        """The two as measured in turns; None where one of them was not."""
        for one in self.rounds:
            if ours in one and theirs in one and one[ours].rates and one[theirs].rates and not one[theirs].problem:
                return one[ours], one[theirs]
        return None


def measure(
    settings: SimSettings,
    seconds: float = 20.0,
    repeats: int = 5,
    peers: Sequence[str] = PEERS,
    scaling: bool = False,
    peer_envs: int | None = None,
    on_round: Callable[[SimBenchmark], None] = lambda so_far: None,
) -> SimBenchmark:
    """Measure every system for about `seconds` in `repeats` turns; a peer takes at least a chunk a turn.

    `peer_envs` is the number of environments of LIBERO's and RLinf's simulators, by default that of ours: each is a
    process of one to two GiB. A peer that is missing, fails or finds too little memory becomes a row that says so.
    `on_round` gets what is known after each round, so that a run that is stopped leaves that.
    Raises `SimError` where one of ours fails.
    """
    few = settings.with_envs(min(peer_envs or settings.num_envs, settings.num_envs))
    chosen = [[name for name in names if name not in PEERS or name in peers] for names in ROUNDS]
    total = sum(len(names) for names in chosen) * (repeats + 2) + 1 + (len(SCALES) * (repeats + 1) if scaling else 0)
    with Progress("bench sim", total) as progress:
        rounds: list[dict[str, Measurement]] = []
        for names in filter(None, chosen):
            rounds.append(_round(names, settings, few, seconds / repeats, repeats, progress))
            on_round(SimBenchmark(settings, few.num_envs, rounds, []))
        points = _scale(settings, seconds, repeats, progress) if scaling else []
        mib = _further_mib(settings)
        progress.advance("memory measured")
    return SimBenchmark(settings, few.num_envs, rounds, points, mib)


def _round(
    names: Sequence[str], settings: SimSettings, few: SimSettings, seconds: float, repeats: int, progress: Progress
) -> dict[str, Measurement]:
    """Systems that take turns; each is ended before the next round begins."""
    found = {name: Measurement(name) for name in names}
    hosts: dict[str, HostedSystem] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            with _noted(found[name], progress, "started"):
                hosts[name] = stack.enter_context(_start(name, few if name in ("libero", "rlinf") else settings))
                found[name].construction_seconds = hosts[name].construction_seconds
        for _ in range(repeats):
            for name, host in list(hosts.items()):
                with _noted(found[name], progress, "stepped", hosts):
                    _step(host, found[name], seconds)
        for name, host in list(hosts.items()):
            with _noted(found[name], progress, "reset", hosts):
                found[name].resets = host.ask("reset_times")
                if name in ("libero", "rlinf") and (mib := host.memory_mib()) is not None:
                    found[name].mib_per_env = mib / few.num_envs
    return found


def _start(name: str, settings: SimSettings) -> HostedSystem:
    """Raises `SimError` for what is not installed, and where memory is short."""
    if name == "rlinf" and not rlinf_is_there():
        raise SimError(f"not installed: {INSTALL_RLINF}")
    processes = settings.num_envs if name in ("libero", "rlinf") else settings.num_workers if name in VECTORS else 1
    needed, free = processes * _MIB_PER_PROCESS + _MIB_TO_SPARE, available_mib()
    if free is not None and free < needed:
        fewer = "--peer-envs" if name in ("libero", "rlinf") else "sim.num_workers"
        raise SimError(
            f"{TITLES[name]} with {processes} processes may need {needed / 1024:.1f} GiB of memory and {free / 1024:.1f} are "
            f"free; end other programs or lower {fewer}"
        )
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
        if measurement.name not in PEERS:
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
        with _start("fast", larger) as host:
            host.ask("run", seconds=0)
            amounts.append(host.memory_mib())
    few, many = amounts
    return None if few is None or many is None else (many - few) / _FURTHER


def _scale(settings: SimSettings, seconds: float, repeats: int, progress: Progress) -> list[ScalePoint]:
    points = []
    for num_envs in SCALES:
        with _start("fast", settings.with_envs(num_envs)) as host:
            progress.advance(f"{num_envs} environments started")
            measurement = Measurement("fast")
            for _ in range(repeats):
                _step(host, measurement, seconds / repeats)
                progress.advance(f"{num_envs} environments stepped")
            points.append(ScalePoint(num_envs, measurement.rates, measurement.cpu_rates, host.memory_mib()))
    return points
