"""`vla-rl bench policy`: how long a policy takes to act and to learn, beside what the machine could do at best.

Repeats take turns: what else the machine does hits all of them, and ratios are taken within a repeat.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vla_rl.bench.policy_work import Workload, acting, count_flops, find_model, learning
from vla_rl.policies import PolicyError
from vla_rl.policies.openvla.modeling import OpenVLAModel
from vla_rl.progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UPDATES = ("update", "update, recomputed", "update, LoRA", "update, LoRA, recomputed")
COMPILED = ("update, LoRA, compiled", "update, LoRA, recomputed, compiled")
"""Measured where asked for: compiling takes minutes."""


@dataclass(frozen=True)
class PolicySettings:
    """What is measured."""

    name: str = "tiny"
    """A preset, `openvla-7b`, or a path."""
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    chunk_length: int = 8
    lora_rank: int = 32
    """0: no adapters."""
    compiled: bool = False
    device: str = "cpu"
    seconds: float = 1.0
    """Of each row, over all repeats."""
    repeats: int = 5

    def __post_init__(self) -> None:
        unknown = [dtype for dtype in self.dtypes if dtype not in DTYPES]
        if unknown:
            raise PolicyError(f"there is no dtype {unknown[0]!r} to measure; choose from {', '.join(DTYPES)}")


@dataclass
class Row:
    """One way to act or to learn, at one batch size and type of weights."""

    name: str
    batch: int
    dtype: str
    tokens: int
    weight_bytes: float
    flops: float = 0.0
    """That the work needs; see `policy_work.count_flops`."""
    seconds: list[float] = field(default_factory=list)
    """Of a call, by repeat."""
    peak_bytes: float | None = None
    """Most memory allocated on the GPU in a call, weights included; not known on a CPU."""
    problem: str | None = None
    """Why it could not be measured."""

    @property
    def key(self) -> tuple[str, int, str]:
        return self.name, self.batch, self.dtype


@dataclass(frozen=True)
class Limits:
    """What the device does at best, measured in the same run."""

    flops: dict[str, float]
    """FLOP/s of a large matrix product, by type."""
    bandwidth: float
    """Bytes/s of a large copy, read and written bytes together."""


@dataclass(frozen=True)
class PolicyBenchmark:
    """All that one run has found."""

    settings: PolicySettings
    parameters: int
    limits: Limits
    rows: list[Row]

    def row(self, name: str, batch: int, dtype: str) -> Row | None:
        """A row that was measured."""
        return next((row for row in self.rows if row.key == (name, batch, dtype) and row.seconds), None)


def measure(settings: PolicySettings) -> PolicyBenchmark:
    """Time everything. What does not fit into the GPU's memory, or lacks peft, becomes a row that says so.

    Raises `PolicyError` where there is no such policy.
    """
    device = torch.device(settings.device)
    model = find_model(settings.name, settings.chunk_length, device)
    rows: list[Row] = []
    known = UPDATES + COMPILED if settings.compiled else UPDATES
    kinds = [kind for kind in known if settings.lora_rank or "LoRA" not in kind]
    with Progress(f"bench policy {settings.name}", len(settings.dtypes) * len(settings.batches) * (1 + len(kinds))) as progress:
        for dtype in settings.dtypes:
            model.to(DTYPES[dtype])
            for batch in settings.batches:
                acted = _act(model, batch, dtype, settings)
                rows += acted
                progress.advance(f"acting, {dtype}, batch {batch}: {_summary(acted)}")
                for kind in kinds:
                    rows.append(_learn(model, batch, dtype, kind, settings, rows))
                    progress.advance(f"{dtype}, batch {batch}, {_summary(rows[-1:])}")
    parameters = sum(p.numel() for p in model.parameters())
    return PolicyBenchmark(settings, parameters, _limits(device, settings.dtypes), rows)


def _summary(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.name} {row.problem or f'{1e3 * min(row.seconds):.0f} ms'}" for row in rows)


def _act(model: OpenVLAModel, batch: int, dtype: str, settings: PolicySettings) -> list[Row]:
    model.requires_grad_(False)
    works = acting(model, batch, dtype)
    rows = [_row(work) for work in works]
    for work, row in zip(works, rows, strict=True):
        _guarded(row, lambda work=work, row=row: _warm_up(work, row, rows))  # type: ignore[misc]
    for _ in range(settings.repeats):
        for work, row in zip(works, rows, strict=True):
            if row.problem is None:
                _guarded(row, lambda work=work, row=row: row.seconds.append(_time(work, settings)))  # type: ignore[misc]
    return rows


def _learn(model: OpenVLAModel, batch: int, dtype: str, kind: str, settings: PolicySettings, before: Sequence[Row]) -> Row:
    row = Row(kind, batch, dtype, batch * model.config.num_tokens, 0.0)

    def run() -> None:
        with learning(model, batch, dtype, kind, settings.lora_rank) as work:
            row.weight_bytes = work.weight_bytes
            _warm_up(work, row, before)
            for _ in range(settings.repeats):
                row.seconds.append(_time(work, settings))

    _guarded(row, run)
    return row


def _row(work: Workload) -> Row:
    return Row(work.name, work.batch, work.dtype, work.tokens, work.weight_bytes)


def _warm_up(work: Workload, row: Row, others: Sequence[Row]) -> None:
    """First calls, in which memory and FLOPs are counted."""
    cuda = torch.cuda.is_initialized()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    work.run()
    if cuda:
        row.peak_bytes = float(torch.cuda.max_memory_allocated())
    needed = [other for other in others if other.key == (work.useful, work.batch, work.dtype)]
    row.flops = needed[0].flops if needed else count_flops(work.run)


def _guarded(row: Row, run: Callable[[], Any]) -> None:
    """A row that does not fit, or for which something is missing, says so, and the others are measured all the same."""
    try:
        run()
    except torch.OutOfMemoryError:
        row.problem, row.seconds = "out of memory", []
    except PolicyError as error:
        row.problem, row.seconds = str(error), []
    if row.problem is not None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _time(work: Workload, settings: PolicySettings) -> float:
    """Seconds of a call, the mean of as many as fit into a repeat's time."""
    calls, wanted = 0, settings.seconds / settings.repeats
    _synchronise()
    begin = time.perf_counter()
    while True:
        work.run()
        _synchronise()
        calls += 1
        spent = time.perf_counter() - begin
        if spent >= wanted:
            return spent / calls


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _limits(device: torch.device, dtypes: Sequence[str]) -> Limits:
    """The best of several matrix products and copies, each large enough to hide what a call costs."""
    side, elements = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    flops = {}
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
        flops[dtype] = 2 * side**3 / _best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    return Limits(flops, 2 * source.nbytes / _best(lambda: target.copy_(source)))


def _best(run: Callable[[], Any], repeats: int = 6) -> float:
    times = []
    for _ in range(repeats):
        _synchronise()
        begin = time.perf_counter()
        run()
        _synchronise()
        times.append(time.perf_counter() - begin)
    return min(times)
