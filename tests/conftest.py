"""Settings of the whole test run."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import hypothesis
import pytest

# Modules of the tests' own that several of them share: bandit, small_policy, pendulum_backend, pendulum_run, small_sets,
# page_reader, pendulum_worker, on_ranks, launching, recorder, serving, hand_made, recorded_bag, ros_graph.
FOLDERS = (
    "algorithms", "policies", "sim", "sim/wheeled", "trainers", "data", "report", "study", "distributed", "serve", "robot"
)  # fmt: skip
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in FOLDERS]

# A shell starts background jobs with Ctrl-C ignored, and what they start inherits that: tests that send it need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine and run: a change that breaks a property fails at once and not by chance later.
hypothesis.settings.register_profile("vla_rl", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("vla_rl")

# Tests run in several processes; each with a thread a core would slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    if importlib.util.find_spec("rclpy") is None:
        for item in items:
            if item.get_closest_marker("ros"):
                item.add_marker(pytest.mark.skip(reason="needs rclpy: pip install 'vla_rl[ros]'"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
