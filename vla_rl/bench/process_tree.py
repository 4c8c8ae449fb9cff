"""CPU time and memory of a process with all its descendants, as Linux's /proc counts them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """The process and all its descendants; just the process where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time (s) that the living members of the tree have used so far."""
    ticks = 0
    for member in tree(pid):
        if (fields := _stat(member)) is not None:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float | None:
    """Proportional set size (MiB) of the tree: a page that n processes share counts 1/n in each. None without /proc."""
    total, known = 0, False
    for member in tree(pid):
        try:
            text = (_PROC / str(member) / "smaps_rollup").read_text()
        except OSError:
            continue
        known = True
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024 if known else None


def available_mib() -> float | None:
    """Memory (MiB) that new processes can have without anything being pushed out. None without /proc."""
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), None)


def be_first_to_go() -> None:
    """Have the kernel end this process and its children before any other where memory runs out."""
    with contextlib.suppress(OSError):
        (_PROC / "self" / "oom_score_adj").write_text("1000")


def machine_cpu_seconds() -> float | None:
    """CPU time (s) that the whole machine has spent on anything, since its start. None without /proc."""
    try:
        fields = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    except (OSError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on: the second, a name, may hold blanks and brackets."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
