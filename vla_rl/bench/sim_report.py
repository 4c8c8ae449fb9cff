"""Tables, verdicts and JSON of `vla-rl bench sim`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vla_rl.bench.output import target_table
from vla_rl.bench.sim import Measurement, ScalePoint, SimBenchmark
from vla_rl.bench.spread import Spread, Target, ratios
from vla_rl.machine import describe_machine

FAST_SPEEDUP, EXACT_SPEEDUP = 25.0, 6.0
PHYSICS_SPEEDUP, BARE_SHARE = 3.5, 0.45
SETTLED_MS, UNSETTLED_MS = 100.0, 20.0
MIB_PER_ENV = 10.0
LINEAR_SHARE = 0.9
"""Env-steps/s with the most environments, as a share of those with eight, from which cost counts as linear."""


def targets(benchmark: SimBenchmark) -> list[Target]:
    """What is asked of the simulator, each with what this run has found."""
    found = benchmark.measurements
    wanted = []
    for peer in ("libero", "rlinf"):
        for quality, speedup in (("fast", FAST_SPEEDUP), ("exact", EXACT_SPEEDUP)):
            title = "LIBERO's vector environment" if peer == "libero" else "RLinf's environment"
            wanted.append(_speedup(f"{quality} pictures against {title}", speedup, benchmark, quality, peer))
    for name, words in (("physics", "exact"), ("fast_physics", "fast")):
        title = f"physics, {words} controller,"
        wanted.append(_speedup(f"{title} against robosuite, per core", PHYSICS_SPEEDUP, benchmark, name, "robosuite"))
        wanted.append(_speedup(f"{title} against bare mj_step, per core", BARE_SHARE, benchmark, name, "bare"))
    wanted.append(Target("reset, settling steps and pictures included", "<", SETTLED_MS, _ms(found.get("fast"), "settled"), "ms"))
    again = _ms(found.get("fast"), "repeated")
    wanted.append(Target("the same, of a beginning that was settled before", "<", SETTLED_MS, again, "ms"))
    wanted.append(Target("reset of a cached task, not settled", "<", UNSETTLED_MS, _ms(found.get("physics"), "unsettled"), "ms"))
    mib = benchmark.mib_per_env
    wanted.append(Target("memory of a further environment", "<", MIB_PER_ENV, None if mib is None else Spread.of([mib]), "MiB"))
    if benchmark.scaling:
        last = benchmark.scaling[-1]
        (eight,) = (point for point in benchmark.scaling if point.num_envs == 8)
        share = Spread.of(ratios(last.rates, eight.rates))
        wanted.append(Target(f"rate of {last.num_envs} environments against that of 8", ">=", LINEAR_SHARE, share, "x"))
    return wanted


def _speedup(name: str, wanted: float, benchmark: SimBenchmark, ours: str, theirs: str) -> Target:
    pair = benchmark.side_by_side(ours, theirs)
    if pair is None:
        return Target(name, ">=", wanted, None, "x")
    value = Spread.of(ratios(pair[0].rates, pair[1].rates))
    note = f"{Spread.of(ratios(pair[0].cpu_rates, pair[1].cpu_rates)).text()} per CPU second" if _complete(*pair) else ""
    return Target(name, ">=", wanted, value, "x", note)


def _complete(*measurements: Measurement) -> bool:
    """Whether CPU time was seen in every repeat: the kernel counts in hundredths of a second."""
    return all(len(measurement.cpu_rates) == len(measurement.rates) for measurement in measurements)


def _ms(measurement: Measurement | None, kind: str) -> Spread | None:
    times = measurement.resets.get(kind) if measurement else None
    return Spread.of([1000 * seconds for seconds in times]) if times else None


def tables(benchmark: SimBenchmark) -> list[Table]:
    """For the terminal and, by `markdown`, for documents."""
    made = [_speed_table(benchmark), target_table(targets(benchmark))]
    if benchmark.scaling:
        made.insert(1, _scaling_table(benchmark.scaling))
    return made


def _speed_table(benchmark: SimBenchmark) -> Table:
    s = benchmark.settings
    table = Table(
        title=f"{s.suite} task {s.task_id}, {s.num_envs} environments, chunks of {s.chunk_length}, "
        f"{' and '.join(s.cameras)} at {s.image_size} px, {s.num_workers} workers: median (range)"
    )
    headings = ("system", "env-steps/s", "env-steps/CPU s", "reset ms", "... again", "... not settled", "first use s", "MiB/env")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for measurement in benchmark.measurements.values():
        if measurement.problem:
            table.add_row(measurement.title, "not measured")
            continue
        cells = [Spread.of(rates).text() if rates else "-" for rates in (measurement.rates, measurement.cpu_rates)]
        cells += [_text(_ms(measurement, kind)) for kind in ("settled", "repeated", "unsettled")]
        cells.append("-" if measurement.construction_seconds is None else f"{measurement.construction_seconds:.1f}")
        mib = benchmark.mib_per_env if measurement.name == "fast" else measurement.mib_per_env
        cells.append("-" if mib is None else f"{mib:.1f}")
        table.add_row(measurement.title, *cells)
    foreign = [cores for measurement in benchmark.measurements.values() for cores in measurement.foreign_cores]
    notes = [
        f"{measurement.title}: {measurement.problem}" for measurement in benchmark.measurements.values() if measurement.problem
    ]
    if benchmark.peer_envs != s.num_envs:
        notes.append(f"LIBERO's and RLinf's simulators ran {benchmark.peer_envs} environments, a process each.")
    if foreign:
        notes.append(f"Other processes used {Spread.of(foreign).text()} CPU cores meanwhile.")
    table.caption = "\n".join(notes) or None
    return table


def _text(spread: Spread | None) -> str:
    return "-" if spread is None else spread.text()


def _scaling_table(points: Sequence[ScalePoint]) -> Table:
    table = Table(title="ours, fast pictures, by number of environments")
    for heading in ("environments", "env-steps/s", "ms of a control step of all", "MiB in all", "MiB a further environment"):
        table.add_column(heading, justify="right")
    for previous, point in zip([None, *points[:-1]], points, strict=True):
        rate = Spread.of(point.rates)
        further = "-"
        # From one environment to more the worker processes change in number, too.
        if previous is not None and previous.num_envs > 1 and None not in (point.memory_mib, previous.memory_mib):
            assert point.memory_mib is not None and previous.memory_mib is not None
            further = f"{(point.memory_mib - previous.memory_mib) / (point.num_envs - previous.num_envs):.2f}"
        memory = "-" if point.memory_mib is None else f"{point.memory_mib:.0f}"
        table.add_row(str(point.num_envs), rate.text(), f"{1000 * point.num_envs / rate.median:.1f}", memory, further)
    return table


def to_dict(benchmark: SimBenchmark) -> dict[str, Any]:
    """Everything, with the machine that it was measured on, as plain values."""
    return {
        "benchmark": "sim",
        "machine": describe_machine(),
        "settings": asdict(benchmark.settings),
        "peer_envs": benchmark.peer_envs,
        "mib_per_env": benchmark.mib_per_env,
        "rounds": [[asdict(measurement) for measurement in one.values()] for one in benchmark.rounds],
        "systems": [
            asdict(measurement)
            | {
                "title": measurement.title,
                "env_steps_per_second": asdict(Spread.of(measurement.rates)) if measurement.rates else None,
            }
            for measurement in benchmark.measurements.values()
        ],
        "scaling": [asdict(point) for point in benchmark.scaling],
        "targets": [target.to_dict() for target in targets(benchmark)],
    }
