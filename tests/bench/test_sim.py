"""`vla-rl bench sim`: its settings, verdicts, and one small run."""

import json
from typing import Any

import numpy as np
import pytest

from vla_rl.bench import sim, sim_report
from vla_rl.bench.hosted import HostedSystem
from vla_rl.bench.output import markdown
from vla_rl.bench.sim import Measurement, ScalePoint, SimBenchmark
from vla_rl.bench.sim_settings import SimSettings
from vla_rl.config import ConfigError
from vla_rl.sim.base import SimError

DEFAULT = SimSettings.from_overrides([])


def test_defaults() -> None:
    assert SimSettings("libero_spatial", 0, 8, 2, ("agentview", "robot0_eye_in_hand"), 128, 8) == DEFAULT
    assert DEFAULT.episode_chunks == 27  # 220 control steps
    assert SimSettings.from_json(DEFAULT.to_json()) == DEFAULT
    assert DEFAULT.with_envs(1).num_workers == 1


def test_a_row_gets_the_same_actions_however_many_there_are() -> None:
    actions = DEFAULT.actions(3)
    assert actions.shape == (8, 8, 7) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert np.array_equal(DEFAULT.with_envs(2).actions(3), actions[:2])
    assert not np.array_equal(actions[0], actions[1]) and not np.array_equal(DEFAULT.actions(4), actions)
    assert [spec.init_state_id for spec in DEFAULT.with_envs(51).specs()][-2:] == [49, 0]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["task.suite=libero_spacial"], SimError, "libero_spatial"),
        (["task.task_ids=[0,1]"], ConfigError, "one LIBERO task"),
        (["sim.cameras=[]"], ConfigError, "at least one camera"),
        (["sim.num_env=3"], ConfigError, "num_envs"),
    ],
)
def test_wrong_settings(overrides: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SimSettings.from_overrides(overrides)


def made_up() -> SimBenchmark:
    """Two repeats, the second at half the speed for all; RLinf is missing."""
    rates = {"fast": 260.0, "exact": 50.0, "libero": 10.0, "physics": 150.0, "robosuite": 50.0, "bare": 450.0}
    rates["fast_physics"] = 210.0
    found = {name: Measurement(name, rates=[rate, rate / 2]) for name, rate in rates.items()}
    missing = Measurement("rlinf", problem="not installed: pip install rlinf")
    found["fast"].resets = {"settled": [0.09, 0.11, 0.08], "repeated": [0.02]}
    found["physics"].resets = {"settled": [0.07], "unsettled": [0.03]}
    points = [ScalePoint(num_envs, [200.0, 100.0], [], 500.0 + num_envs) for num_envs in (1, 8, 64)]
    later = {"fast": Measurement("fast", rates=[1.0]), "rlinf": missing}
    return SimBenchmark(DEFAULT, 2, [found, later], points, mib_per_env=0.5)


def test_verdicts_come_from_ratios_within_a_repeat() -> None:
    verdicts = {target.name: target.verdict for target in sim_report.targets(made_up())}
    assert verdicts == {
        "fast pictures against LIBERO's vector environment": "met",  # 26
        "exact pictures against LIBERO's vector environment": "NOT MET",  # 5
        "fast pictures against RLinf's environment": "not measured",
        "exact pictures against RLinf's environment": "not measured",
        "physics, exact controller, against robosuite, per core": "NOT MET",  # 3
        "physics, exact controller, against bare mj_step, per core": "NOT MET",  # 0.33
        "physics, fast controller, against robosuite, per core": "met",  # 4.2
        "physics, fast controller, against bare mj_step, per core": "met",  # 0.47
        "reset, settling steps and pictures included": "met",  # 90 ms
        "the same, of a beginning that was settled before": "met",  # 20 ms
        "reset of a cached task, not settled": "NOT MET",  # 30 ms
        "memory of a further environment": "met",
        "rate of 64 environments against that of 8": "met",
    }


def test_tables_name_what_is_missing() -> None:
    text = "\n".join(markdown(table) for table in sim_report.tables(made_up()))
    assert "| RLinf LiberoEnv | not measured |" in text and "RLinf LiberoEnv: not installed: pip install rlinf" in text
    assert "ran 2 environments, a process each" in text
    assert "| 64 | 150 (100-200) | 426.7 | 564 | 1.00 |" in text
    record = json.loads(json.dumps(sim_report.to_dict(made_up())))
    assert record["machine"]["cpu_cores"] >= 1 and len(record["targets"]) == 13 and len(record["scaling"]) == 3


@pytest.mark.slow
def test_a_small_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and robosuite on one core; RLinf is not installed and says how to mend that."""
    monkeypatch.setattr(sim, "ROUNDS", (("fast", "rlinf"), ("physics", "robosuite", "bare")))
    monkeypatch.setattr(sim, "_further_mib", lambda settings: None)
    monkeypatch.setattr(sim, "rlinf_is_there", lambda: False)
    settings = SimSettings.from_overrides(
        ["sim.num_envs=2", "sim.num_workers=1", "sim.image_size=64", "task.suite=libero_object"]
    )
    kept: list[dict[str, Any]] = []
    benchmark = sim.measure(
        settings, 0.4, 2, peers=("rlinf", "robosuite"), on_round=lambda so_far: kept.append(sim_report.to_dict(so_far))
    )
    assert [len(record["rounds"]) for record in kept] == [1, 2] and "robosuite" not in str(kept[0]["rounds"])
    found = benchmark.measurements
    assert found["rlinf"].problem is not None and "pip install" in found["rlinf"].problem
    for name in ("fast", "physics", "bare", "robosuite"):
        assert len(found[name].rates) == 2 and min(found[name].rates) > 1, name
    assert found["fast"].parts["frames"] == 2 * found["fast"].parts["turns"] > 0
    assert 0 < min(found["physics"].resets["unsettled"]) < min(found["physics"].resets["settled"])
    assert 0 < min(found["fast"].resets["repeated"]) < min(found["fast"].resets["settled"])
    measured = {target.name: target.value.median for target in sim_report.targets(benchmark) if target.value}
    assert measured["physics, exact controller, against robosuite, per core"] > 1.5
    assert 0.2 < measured["physics, exact controller, against bare mj_step, per core"] < 1


def test_too_little_memory_is_said_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "available_mib", lambda: 8192.0)
    with pytest.raises(SimError, match="8 processes may need 16.1 GiB .* 8.0 are free; .*--peer-envs"):
        sim._start("libero", DEFAULT)
    with pytest.raises(SimError, match=r"sim\.num_workers"):
        sim._start("fast", SimSettings.from_overrides(["sim.num_workers=8"]))


def test_a_system_that_cannot_start_says_why() -> None:
    with pytest.raises(SimError, match="fast: .*has no camera 'nose'"):
        HostedSystem("fast", SimSettings.from_overrides(["sim.num_envs=1", "sim.image_size=64", "sim.cameras=[nose]"]))
