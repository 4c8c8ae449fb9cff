"""The append-only log of a robot: one JSON object a line, written at once, never changed."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class RobotLog:
    """Appends records to a file. A file that another process was killed over goes on after its last whole line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._cut = bool(size) and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def write(self, record: Mapping[str, Any], durable: bool = False) -> None:
        """One record; `durable`: only return once it is on the disk. Numbers that are not finite become null.

        Raises `OSError` where the disk does not take it; the next record then begins a line of its own.
        """
        line = json.dumps(_finite(record), separators=(",", ":"), allow_nan=False)
        data = (b"\n" if self._cut else b"") + line.encode() + b"\n"
        written = os.write(self._descriptor, data)
        self._cut = written < len(data)
        if self._cut:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Raises `OSError` where the disk has not taken everything; the file is closed all the same."""
        if self._descriptor >= 0:
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> RobotLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a log; a line that was cut off is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
