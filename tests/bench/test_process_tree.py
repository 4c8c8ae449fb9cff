"""CPU time and memory of a process and its children."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla_rl.bench.process_tree import cpu_seconds, machine_cpu_seconds, memory_mib, tree

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
CHILD = "import time; held = bytearray(b'1') * 2**25; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_children_count() -> None:
    pid = os.getpid()
    mib, seconds, machine = memory_mib(pid), cpu_seconds(pid), machine_cpu_seconds()
    code = CHILD + "print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in tree(pid) and tree(child.pid) == [child.pid]
        assert memory_mib(pid) - mib > 30  # type: ignore[operator]  # 32 MiB held by the child
        assert cpu_seconds(child.pid) >= 0.28
        assert cpu_seconds(pid) - seconds >= 0.28
        assert machine_cpu_seconds() - machine >= 0.25  # type: ignore[operator]
    finally:
        child.communicate(b"\n")
    assert child.pid not in tree(pid)


def test_a_process_that_is_gone_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert cpu_seconds(child.pid) == 0 and memory_mib(child.pid) is None
