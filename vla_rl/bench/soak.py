"""A long run in which workers are killed at random instants: does an episode get lost, doubled or changed, does anything leak?

Legend: B environments, A actions of a chunk, D action size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from vla_rl.bench.output import target_table
from vla_rl.bench.process_tree import memory_mib, tree
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.bench.spread import Spread, Target
from vla_rl.machine import describe_machine
from vla_rl.progress import Progress
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec, Turn

MEMORY_GROWTH = 1.05
"""Median memory of the last third over that of the second, from which something counts as leaking; the first third warms up."""
_NAMED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Soak:
    """What to run: short episodes of `specs`, each again and again, with actions that depend on the spec and the chunk alone."""

    make: Callable[[], SimPool]
    specs: Sequence[EpisodeSpec]
    chunks: int
    """Of an episode; then its row starts the next one."""
    chunk_length: int
    seconds: float
    kill_every: float
    """Mean seconds between two kills, which come at exponentially distributed times."""

    def actions(self, sim: SimPool, episode_of: dict[int, tuple[int, int]]) -> np.ndarray:
        """float32 [B, A, D] for rows that hold (index of a spec, number of the chunk)."""
        actions = np.zeros((sim.num_envs, self.chunk_length, sim.action_dim), np.float32)
        for row, place in episode_of.items():
            actions[row] = np.random.default_rng(place).uniform(-1, 1, actions.shape[1:])
        return actions


@dataclass
class Outcome:
    """What was seen."""

    episodes: int = 0
    kills: int = 0
    lost: int = 0
    """Episodes that ended in an error instead of their last chunk."""
    changed: int = 0
    """Episodes whose rewards, proprioception or pictures were not those of the undisturbed run."""
    uneven: int = 0
    """Specs that ran more than once more or less often than others: a doubled or a skipped episode."""
    memory: list[float] = field(default_factory=list)
    """MiB of this process and its workers, sampled about a hundred times."""
    left: list[str] = field(default_factory=list)
    """Processes, file descriptors and named memory that were there after closing and not before opening."""
    seconds: float = 0.0

    @property
    def growth(self) -> float | None:
        """Median memory of the last third over that of the second."""
        third = len(self.memory) // 3
        return median(self.memory[2 * third :]) / median(self.memory[third : 2 * third]) if third else None


def of_libero(settings: SimSettings, quality: str, seconds: float, kill_every: float) -> Soak:
    """Forty different episodes of four chunks each."""

    def make() -> SimPool:
        from vla_rl.sim.registry import make_sim

        sim = make_sim(
            "libero",
            num_envs=settings.num_envs,
            num_workers=settings.num_workers,
            cameras=settings.cameras,
            image_size=settings.image_size,
            render_quality=quality,
        )
        assert isinstance(sim, SimPool)
        return sim

    specs = [EpisodeSpec(settings.suite, settings.task_id, seed=seed) for seed in range(40)]
    return Soak(make, specs, 4, settings.chunk_length, seconds, kill_every)


def soak(case: Soak) -> Outcome:
    """Run all specs once undisturbed, then again and again under fire; compare by digests."""
    before = _belongings()
    outcome = Outcome()
    with case.make() as sim:
        expected = dict(_episodes(case, sim, range(len(case.specs)), outcome))
        outcome = Outcome()
        counts: Counter[int] = Counter()
        begin = time.monotonic()
        with Progress("soak", total=max(1, int(case.seconds))) as progress, _killer(sim, case.kill_every) as kills:
            for index, digest in _episodes(case, sim, _until(case, begin), outcome):
                counts[index] += 1
                outcome.episodes += 1
                outcome.changed += digest != expected[index]
                elapsed = time.monotonic() - begin
                if elapsed >= len(outcome.memory) * case.seconds / 100:
                    outcome.memory.append(memory_mib(os.getpid()) or 0.0)
                    done = min(int(elapsed), int(case.seconds))
                    progress.advance(f"{outcome.episodes} episodes, {len(kills)} kills", to=done)
        outcome.kills, outcome.seconds = len(kills), time.monotonic() - begin
        often = [counts[index] for index in range(len(case.specs))]
        outcome.uneven = sum(abs(count - max(often)) > 1 for count in often)
    outcome.left = _left_over(before)
    return outcome


def _until(case: Soak, begin: float) -> Iterator[int]:
    """Indices of specs, in turn, until the time is up."""
    while time.monotonic() - begin < case.seconds:
        yield from range(len(case.specs))


def _episodes(case: Soak, sim: SimPool, indices: Iterator[int] | range, outcome: Outcome) -> Iterator[tuple[int, bytes]]:
    """(index of the spec, digest of all that was observed) of each episode as it ends; every row is kept busy."""
    waiting = iter(indices)
    places: dict[int, tuple[int, int]] = {}
    digests: dict[int, Any] = {}
    while True:
        for row in range(sim.num_envs):
            if row not in places and (index := next(waiting, None)) is not None:
                sim.reset([case.specs[index]], [row])
                places[row], digests[row] = (index, 0), hashlib.sha256()
        if not places:
            return
        turn = sim.step_chunk(case.actions(sim, places))
        for row, (index, chunk) in list(places.items()):
            if row in turn.errors:
                outcome.lost += 1
                del places[row]
                continue
            _take_in(digests[row], turn, row)
            places[row] = (index, chunk + 1)
            if chunk + 1 == case.chunks or turn.finished[row]:
                del places[row]
                yield index, digests[row].digest()


def _take_in(digest: Any, turn: Turn, row: int) -> None:
    for array in (turn.rewards, turn.executed, turn.observation.proprio, *turn.observation.images.values()):
        digest.update(array[row].tobytes())


@contextlib.contextmanager
def _killer(sim: SimPool, kill_every: float) -> Iterator[list[int]]:
    """Kills a random worker now and then, from a thread, so that it may hit any instant; yields the list of the killed."""
    killed: list[int] = []
    end = threading.Event()
    generator = random.Random(0)

    def run() -> None:
        while not end.wait(generator.expovariate(1 / kill_every)):
            pids = [pid for pid in sim.worker_pids if pid is not None]
            if pids:
                killed.append(generator.choice(pids))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        end.set()
        thread.join()


def _belongings() -> tuple[set[int], int, set[str]]:
    named = {path.name for path in _NAMED_MEMORY.iterdir()} if _NAMED_MEMORY.is_dir() else set()
    return set(tree(os.getpid())), len(os.listdir("/proc/self/fd")), named


def _left_over(before: tuple[set[int], int, set[str]]) -> list[str]:
    processes, descriptors, named = before
    now = _belongings()
    left = [f"process {pid}" for pid in sorted(now[0] - processes)] + [f"shared memory {name}" for name in sorted(now[2] - named)]
    return left + [f"{now[1] - descriptors} file descriptors"] * (now[1] > descriptors)


def targets(outcome: Outcome) -> list[Target]:
    """Nothing lost, doubled, changed, leaked or left."""
    counted = {
        "episodes lost": outcome.lost,
        "episodes doubled or skipped": outcome.uneven,
        "episodes that differ from the undisturbed run": outcome.changed,
        "processes, descriptors and shared memory left": len(outcome.left),
    }
    found = [Target(name, "<=", 0, Spread.of([count])) for name, count in counted.items()]
    found[-1] = Target(found[-1].name, "<=", 0, found[-1].value, note=", ".join(outcome.left))
    growth = outcome.growth
    value = None if growth is None else Spread.of([growth])
    found.append(Target("memory, last third over second", "<=", MEMORY_GROWTH, value, "x"))
    return found


def tables(outcome: Outcome) -> list[Table]:
    table = target_table(targets(outcome))
    peak = f", at most {max(outcome.memory):.0f} MiB" if outcome.memory else ""
    table.title = f"soak of {outcome.seconds:.0f} s: {outcome.episodes} episodes, {outcome.kills} workers killed{peak}"
    return [table]


def to_dict(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "targets": [target.to_dict() for target in targets(outcome)], "machine": describe_machine()}
