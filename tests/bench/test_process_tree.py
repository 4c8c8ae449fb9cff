"""CPU time and memory of a process and its children."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla_rl.bench.process_tree import cpu_seconds, machine_cpu_seconds, memory_mib, tree

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
CHILD = "import time; held = bytearray(b'1') * 2**25; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


PARENT = f"""import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD + "print(flush=True); input()"!r}], stdin=0, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_children_count() -> None:
    """Of a small process: that of the tests is large, and what it gives back meanwhile would hide its children."""
    machine = machine_cpu_seconds()
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert child in tree(os.getpid()) and tree(parent.pid) == [parent.pid, child] and tree(child) == [child]
        both, alone = memory_mib(parent.pid), memory_mib(child)
        assert both is not None and alone is not None and both > alone > 30  # 32 MiB held by the child
        assert cpu_seconds(parent.pid) >= cpu_seconds(child) >= 0.28
        assert machine_cpu_seconds() - machine >= 0.25  # type: ignore[operator]
    finally:
        parent.communicate(b"\n")
    assert child not in tree(os.getpid())


def test_a_process_that_is_gone_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert cpu_seconds(child.pid) == 0 and memory_mib(child.pid) is None
