"""Tables, verdicts and JSON of `vla-rl bench policy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vla_rl.bench.output import target_table
from vla_rl.bench.policy import PolicyBenchmark, Row
from vla_rl.bench.spread import Spread, Target, ratios
from vla_rl.machine import describe_machine

PARALLEL_SPEEDUP = 5.0
ABLATIONS = (
    ("parallel decoding against autoregressive, both with a cache", "autoregressive", "parallel"),
    ("KV cache", "autoregressive, no cache", "autoregressive"),
    ("our loop against HF generate", "autoregressive, HF generate", "autoregressive"),
    ("CUDA graphs, autoregressive", "autoregressive", "autoregressive, CUDA graphs"),
    ("CUDA graphs against HF generate", "autoregressive, HF generate", "autoregressive, CUDA graphs"),
    ("CUDA graph, parallel", "parallel", "parallel, CUDA graph"),
    ("one prefix for the batch, autoregressive", "autoregressive", "autoregressive, one prefix"),
    ("one prefix for the batch, parallel", "parallel", "parallel, one prefix"),
    ("keeping activations against computing them anew", "update, recomputed", "update"),
    ("LoRA against training all weights", "update", "update, LoRA"),
    ("torch.compile, LoRA", "update, LoRA", "update, LoRA, compiled"),
    ("torch.compile, LoRA, recomputed", "update, LoRA, recomputed", "update, LoRA, recomputed, compiled"),
)
"""Title, the slower row, the faster row."""


def targets(benchmark: PolicyBenchmark) -> list[Target]:
    """What is asked of a policy that decodes in parallel; at the smallest batch and first type."""
    settings = benchmark.settings
    name = f"parallel decoding against autoregressive, chunk {settings.chunk_length}, batch {settings.batches[0]}"
    value = _speedup(benchmark, "autoregressive", "parallel", settings.batches[0], settings.dtypes[0])
    return [Target(name, ">=", PARALLEL_SPEEDUP, value, "x")]


def tables(benchmark: PolicyBenchmark) -> list[Table]:
    """For the terminal and, by `markdown`, for documents."""
    return [_row_table(benchmark), _ablation_table(benchmark), target_table(targets(benchmark))]


def to_dict(benchmark: PolicyBenchmark) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "machine": describe_machine(),
        "settings": asdict(benchmark.settings),
        "parameters": benchmark.parameters,
        "limits": asdict(benchmark.limits),
        "rows": [
            asdict(row)
            | {"median_seconds": Spread.of(row.seconds).median if row.seconds else None}
            | {"flop_floor_seconds": _flop_floor(benchmark, row), "memory_floor_seconds": _memory_floor(benchmark, row)}
            for row in benchmark.rows
        ],
        "targets": [target.to_dict() for target in targets(benchmark)],
    }


def _flop_floor(benchmark: PolicyBenchmark, row: Row) -> float:
    """Seconds that the FLOPs would take at the speed of a large matrix product."""
    return row.flops / benchmark.limits.flops[row.dtype]


def _memory_floor(benchmark: PolicyBenchmark, row: Row) -> float:
    """Seconds to read the weights as often as the passes need them; activations and cached keys come on top."""
    return row.weight_bytes / benchmark.limits.bandwidth


def _row_table(benchmark: PolicyBenchmark) -> Table:
    settings, limits = benchmark.settings, benchmark.limits
    speeds = ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in limits.flops.items())
    table = Table(
        title=f"{settings.name}, {benchmark.parameters / 1e6:.3g} M parameters, chunk {settings.chunk_length}, {settings.device}",
        caption=f"medians and ranges of {settings.repeats} repeats; utilisation and floors against what this machine did in the "
        f"same run: matrix products {speeds}, copies {limits.bandwidth / 1e9:.3g} GB/s",
    )
    for heading in (
        "what",
        "type",
        "batch",
        "ms",
        "tokens/s",
        "GFLOP",
        "utilisation",
        "FLOP floor, ms",
        "weight floor, ms",
        "peak GiB",
    ):
        table.add_column(heading, justify="left" if heading in ("what", "type") else "right")
    for row in benchmark.rows:
        table.add_row(row.name, row.dtype, str(row.batch), *_cells(benchmark, row))
    return table


def _cells(benchmark: PolicyBenchmark, row: Row) -> Sequence[str]:
    if row.problem is not None or not row.seconds:
        return (row.problem or "-", *["-"] * 6)
    times = Spread.of([1e3 * seconds for seconds in row.seconds])
    rate = Spread.of([row.tokens / seconds for seconds in row.seconds])
    floor = _flop_floor(benchmark, row)
    return (
        times.text(),
        rate.text(0),
        f"{row.flops / 1e9:.3g}",
        f"{floor / Spread.of(row.seconds).median:.0%}",
        f"{1e3 * floor:.3g}",
        f"{1e3 * _memory_floor(benchmark, row):.3g}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
    )


def _ablation_table(benchmark: PolicyBenchmark) -> Table:
    table = Table(title="what each measure brings: times quicker, within repeats")
    for heading in ("measure", "type", "batch", "x"):
        table.add_column(heading, justify="left" if heading in ("measure", "type") else "right")
    settings = benchmark.settings
    for title, slow, fast in ABLATIONS:
        for dtype in settings.dtypes:
            for batch in settings.batches:
                value = _speedup(benchmark, slow, fast, batch, dtype)
                if value is not None:
                    table.add_row(title, dtype, str(batch), value.text(2))
    if set(settings.dtypes) >= {"float32", "bfloat16"}:
        for name in ("parallel", "autoregressive", "update"):
            for batch in settings.batches:
                slow_row, fast_row = (benchmark.row(name, batch, dtype) for dtype in ("float32", "bfloat16"))
                if slow_row and fast_row:
                    value = Spread.of(ratios(slow_row.seconds, fast_row.seconds))
                    table.add_row(f"bfloat16, {name}", "bfloat16", str(batch), value.text(2))
    return table


def _speedup(benchmark: PolicyBenchmark, slow: str, fast: str, batch: int, dtype: str) -> Spread | None:
    slower, faster = benchmark.row(slow, batch, dtype), benchmark.row(fast, batch, dtype)
    return Spread.of(ratios(slower.seconds, faster.seconds)) if slower and faster else None
