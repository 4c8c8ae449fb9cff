"""The driving policy that the repository ships: configs/wheeled_tracking.yaml, seed 0, exported."""

from pathlib import Path

import numpy as np
import pytest
from ros_graph import require_real_time

from vla_rl.bench.rehearsal import measure
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.sim.wheeled.simulator import WheeledControl
from vla_rl.trainers.driving_evaluation import evaluate_driving

EXPORT = Path(__file__).parents[2] / "pretrained" / "wheeled_tracking"
QUIET = {
    "plant": {"fix_noise": [0, 0], "encoder_noise": [0, 0], "gyro_noise": [0, 0], "slip_variation": [0, 0]},
    "scene": {"standing": [0, 0], "moving": [0, 0], "boxes": [0, 0]},
}
"""What makes the error of an episode a matter of chance: noise, and whom one meets. With it the mean of 20 episodes says as
much (`vla-rl bench rehearsal`), but takes seven minutes."""


def test_it_drives_among_obstacles() -> None:
    found = evaluate_driving(WheeledControl("tracking_slow", 40), ExportedPolicy(EXPORT).act, 40)
    assert found["success"]["count"] >= 36 and found["collision"]["count"] == 0, found
    assert found["cross_track"] < 0.22, "the classical baseline's"


@pytest.mark.ros
@pytest.mark.slow
def test_through_the_graph_it_tracks_a_path_as_well_as_in_the_simulator() -> None:
    require_real_time()
    pairs = measure(EXPORT, 2, QUIET)
    assert all(pair.graph.success and pair.simulator.success for pair in pairs)
    graph, simulator = (np.mean([getattr(pair, side).cross_track for pair in pairs]) for side in ("graph", "simulator"))
    print(f"cross-track error {graph:.4f} m, in the simulator {simulator:.4f} m")
    assert abs(graph - simulator) <= 0.1 * simulator
