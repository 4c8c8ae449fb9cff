"""A short run of `vla-rl bench wheeled`."""

from pathlib import Path

import av
import pytest

from vla_rl.bench import wheeled
from vla_rl.bench.output import markdown
from vla_rl.sim.base import SimError


def test_speed_and_baseline_are_measured_and_filmed(tmp_path: Path) -> None:
    found = wheeled.measure(8, 0.1, 2, ("tracking_slow",), episodes=2, videos=tmp_path, loop_seconds=1.0)
    with av.open(str(tmp_path / "tracking_slow.mp4")) as video:
        # 4 to 6 m at 0.28 m/s are some 15 to 25 s of 10 frames each.
        assert video.streams.video[0].frames > 100
    record = wheeled.to_dict(found)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in record["env_steps_per_cpu_second"].values())
    assert record["baseline"]["ours tracking_slow"]["episodes"] == 2
    control = record["control"]
    assert len(control["inference_p99"]) == 2 and 0 < control["inference_median"][0] <= control["inference_p99"][0]
    # Scans come every 0.1 s, and inputs older than 0.17 s are not decided on.
    assert all(0 < latency < 200 for latency in control["latency_p99"]) and min(control["lateness_p99"]) >= 0
    targets, drivers, times = (markdown(table) for table in wheeled.tables(found))
    assert "control loop at 50 Hz, p99 lateness | < 5 ms" in targets and "oldest input of a decision" in times
    assert "env-steps per CPU second, 60 beams | >= 20000" in targets and "| ours tracking_slow |" in drivers


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(SimError, match="there is no wheeled task 'parking'"):
        wheeled.measure(2, 0.1, 1, ("parking",))
