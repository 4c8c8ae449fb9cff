"""Metrics of a run: one JSON line per record, the same numbers for TensorBoard, seconds by part, and the machine.

A record is `{"step": 3, "phase": "rl", "wall_time": 81.2, "values": {"policy/loss": 0.01}}`; `wall_time` counts the
seconds that the run has been running, over all its resumptions, without the time between them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.machine import describe_machine as describe_machine

FILE = "metrics.jsonl"
PARTS = ("simulation", "rendering", "inference", "learning")

log = logging.getLogger(__name__)


class MetricsError(ValueError):
    """A value that is not a number, or a record that cannot be written; the message says which and why."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl` (or of the run directory that holds one), in the order of writing.

    A last line that a killed process left unfinished is not a record yet; any other line that is unreadable is
    skipped with a warning. A file that does not exist has no records.
    """
    return [record for record, _ in _scan(_file(Path(path)))]


class MetricsLogger:
    """Appends records to `run_dir/metrics.jsonl` and to TensorBoard event files in `run_dir/tensorboard/PHASE`.

    A new logger on the directory of an earlier run continues it. To resume from a checkpoint without duplicate or
    missing records, save `position()` in the checkpoint and `rewind` to it.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._writers: dict[str, Any] = {}
        # Unbuffered, so that what a full disk refused is not written later, by closing.
        self._file = (self.run_dir / FILE).open("ab", buffering=0)
        self._earlier, self._started = 0.0, time.monotonic()
        self.recorded_time = 0.0
        """Seconds that the run had been running at its last record."""
        # A half-written last line goes, or the next record would be glued to it.
        self.rewind({"bytes": self._file.tell()})

    @property
    def wall_time(self) -> float:
        """Seconds that this run has been running, earlier processes included."""
        return self._earlier + time.monotonic() - self._started

    def log(self, step: int, values: Mapping[str, float], phase: str) -> None:
        """Append one record and flush it. A value that is not finite is recorded as null, with a warning.

        Values are numbers, numpy scalars or tensors of one element. Anything else raises `MetricsError`, and so does a
        disk that is full; then nothing was recorded.
        """
        numbers = {name: _number(name, value) for name, value in values.items()}
        broken = [name for name, number in numbers.items() if not math.isfinite(number)]
        if broken:
            found = ", ".join(f"{name} is {numbers[name]}" for name in broken)
            log.warning("%s step %d: %s; recorded as null", phase, step, found)
        wall_time = self.wall_time
        record = {
            "step": int(step),
            "phase": phase,
            "wall_time": round(wall_time, 4),
            "values": {name: number if math.isfinite(number) else None for name, number in numbers.items()},
        }
        end = self._file.tell()
        try:
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
            if self._tensorboard:
                writer = self._writer(phase, purge_step=None)
                for name, number in numbers.items():
                    if math.isfinite(number):
                        writer.add_scalar(name, number, step)
                writer.flush()
            self.recorded_time = round(wall_time, 4)
        except OSError as error:
            self._file.truncate(end)
            self._file.seek(end)
            reason = f"{error.strerror or error}; free some space and resume the run"
            raise MetricsError(f"cannot record {phase} step {step} in {self.run_dir}: {reason}") from error

    def position(self) -> dict[str, float]:
        """Where the record ends now: JSON for a checkpoint. Everything before it is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell(), "wall_time": self.wall_time}

    def rewind(self, position: Mapping[str, float]) -> None:
        """Forget every record after `position`, in TensorBoard too, and continue its wall time."""
        path = self.run_dir / FILE
        records = _scan(path)
        wanted = int(position["bytes"])
        kept = [record for record, end in records if end <= wanted]
        size = path.stat().st_size
        if size < wanted:
            log.warning("%s has %d bytes, and %d when the checkpoint was saved: records are missing", path, size, wanted)
        self._file.truncate(max((end for _, end in records if end <= wanted), default=0))
        self._file.seek(0, os.SEEK_END)
        self._earlier = float(position.get("wall_time", kept[-1]["wall_time"] if kept else 0.0))
        self._started = time.monotonic()
        self.recorded_time = kept[-1]["wall_time"] if kept else 0.0
        for phase in {record["phase"] for record, end in records if end > wanted} if self._tensorboard else ():
            last = max((record["step"] for record in kept if record["phase"] == phase), default=-1)
            self._writer(phase, purge_step=last + 1)

    def truncate_after(self, step: int, phase: str) -> None:
        """Forget everything that was logged after step `step` of `phase`; without such a step, since `phase` began."""
        records = _scan(self.run_dir / FILE)
        of_phase = [(record["step"], index) for index, (record, _) in enumerate(records) if record["phase"] == phase]
        count = max((index + 1 for at, index in of_phase if at <= step), default=of_phase[0][1] if of_phase else len(records))
        self.rewind({"bytes": records[count - 1][1] if count else 0})

    def close(self) -> None:
        self._file.close()
        for phase, writer in self._writers.items():
            try:
                writer.close()
            except OSError as error:  # a full disk, which `log` has told of or which costs TensorBoard's copy alone
                log.warning("TensorBoard's last records of %s in %s are lost: %s", phase, self.run_dir, error.strerror or error)
        self._writers.clear()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, data: bytes) -> None:
        while data:  # a nearly full disk takes a part, and refuses the rest in the next round
            data = data[self._file.write(data) :]

    def _writer(self, phase: str, purge_step: int | None) -> Any:
        if phase in self._writers and purge_step is None:
            return self._writers[phase]
        # Imported here, because it takes a second that a reader of metrics need not wait.
        from torch.utils.tensorboard import SummaryWriter

        if phase in self._writers:
            self._writers.pop(phase).close()
        folder = self.run_dir / "tensorboard" / phase
        # TensorBoard reads event files by name, which starts with the second of their creation: two of one second
        # could be read in the wrong order.
        while any(f".tfevents.{int(time.time()):010d}." in path.name for path in folder.glob("*.tfevents.*")):
            time.sleep(0.05)
        self._writers[phase] = SummaryWriter(str(folder), purge_step=purge_step)
        return self._writers[phase]


class Stopwatch:
    """Seconds by part of the loop, each moment counted once.

    Example:
        with watch.part("simulation"):      # a part opened inside another one pauses it
            turn = sim.step_chunk(actions)
        watch.transfer("simulation", "rendering", seconds_that_the_workers_rendered)
        values |= watch.lap()               # {"time/simulation": 1.5, ..., "time/other": 0.1}

    What lies outside every part is "other". With CUDA, a part waits for its kernels at its end, so that they are not
    counted in a later one.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = dict.fromkeys((*PARTS, "other"), 0.0)
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def transfer(self, source: str, target: str, seconds: float) -> None:
        """Count `seconds` of `source` (at most what it has) as `target`: for parts that another process timed."""
        self._switch()
        moved = min(max(seconds, 0.0), self._seconds.get(source, 0.0))
        self._seconds[source] = self._seconds.get(source, 0.0) - moved
        self._seconds[target] = self._seconds.get(target, 0.0) + moved

    @property
    def seconds(self) -> dict[str, float]:
        self._switch()
        return dict(self._seconds)

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of the whole, which sum to 1."""
        seconds = self.seconds
        total = sum(seconds.values())
        return {name: value / total if total > 0 else 0.0 for name, value in seconds.items()}

    def lap(self) -> dict[str, float]:
        """The seconds since the last lap as metrics, `{"time/PART": s}`; starts the next lap."""
        seconds = self.seconds
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return {f"time/{name}": value for name, value in seconds.items()}

    def _switch(self) -> None:
        _synchronize()
        now = time.perf_counter()
        current = self._open[-1] if self._open else "other"
        self._seconds[current] = self._seconds.get(current, 0.0) + now - self._since
        self._since = now


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricsError(f"metric {name!r} is not one number but {type(value).__name__}: {error}") from error


def _scan(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Each record with the byte at which its line ends."""
    if not path.exists():
        return []
    records, end = [], 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            end += len(line)
            record = _parse(line)
            if record is not None and line.endswith(b"\n"):
                records.append((record, end))
            elif line.endswith(b"\n"):
                log.warning("%s line %d is not a record; skipped", path, number)
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        fits = isinstance(record["step"], int) and isinstance(record["phase"], str) and isinstance(record["values"], dict)
        return record if fits and isinstance(record["wall_time"], int | float) else None
    except (ValueError, KeyError, TypeError):
        return None
