import importlib.util
import json
from pathlib import Path

import pytest

from vla_rl.bench import dsac, dsac_learning
from vla_rl.bench.dsac_learning import Outcome, Task
from vla_rl.config import ConfigError

TINY = dsac.DsacSettings(observation_dim=3, action_dim=2, hidden=(8, 8), batch_size=16, transitions=64)


def test_every_system_is_measured_in_every_repeat() -> None:
    found = dsac.measure(TINY, seconds=0.05, repeats=2)
    assert {dsac.OURS, dsac.OUR_SAC, dsac.PLAIN} <= set(found.rates)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found.rates.values())
    assert json.loads(json.dumps(dsac.to_dict(found)))["updates_per_s"] == found.rates
    assert [table.row_count for table in dsac.tables(found)] == [len(found.rates), 2]


def test_the_target_is_judged_by_the_ratio_of_each_repeat() -> None:
    # 32 / 20, 30 / 15 and 33 / 22 are 1.6, 2 and 1.5: the median is 1.6.
    found = dsac.DsacBenchmark(TINY, {dsac.OURS: [32.0, 30.0, 33.0], dsac.PLAIN: [20.0, 15.0, 22.0]})
    plain, sb3 = dsac.targets(found)
    assert plain.value is not None and plain.value.median == pytest.approx(1.6) and plain.met
    assert sb3.met is None and "pip install" in sb3.note


def test_a_learning_comparison_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dsac_learning, "TASKS", {"Pendulum-v1": Task(1000, 1, 1000, 1e-3)})
    monkeypatch.setattr(dsac_learning, "HIDDEN", (8,))
    monkeypatch.setattr(dsac_learning, "EPISODES", 2)
    record = tmp_path / "outcomes.jsonl"
    [first] = dsac_learning.measure(["Pendulum-v1"], ["dsac_t"], record)
    assert (first.key, first.env_steps, len(first.returns)) == (("Pendulum-v1", "dsac_t", 0), 1000, 2)
    assert all(-2000 < value < 0 for value in first.returns)
    assert list(dsac_learning.measure(["Pendulum-v1"], ["dsac_t"], record)) == []
    [second] = dsac_learning.measure(["Pendulum-v1"], ["dsac_t", "sac"], record)
    assert second.algorithm == "sac"
    assert dsac_learning.read_outcomes(record) == [first, second]


def test_the_table_has_every_seed() -> None:
    runs = [Outcome("Hopper-v5", "sac", seed, 100_000, [10.0 * seed, 20.0], 60.0) for seed in (0, 1)]
    [table] = dsac_learning.tables(runs)
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["Hopper-v5"], ["100,000"], ["sac"], ["10.0, 15.0"], ["12.5"], ["60"]]


@pytest.mark.parametrize(("tasks", "algorithms"), [(["Ant-v9"], ["sac"]), (["Pendulum-v1"], ["ddpg"])])
def test_unknown_names_are_refused_in_one_line(tmp_path: Path, tasks: list[str], algorithms: list[str]) -> None:
    with pytest.raises(ConfigError, match="^there is no [^\n]*; choose among [^\n]*$"):
        next(dsac_learning.measure(tasks, algorithms, tmp_path / "a.jsonl"))


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is not None, reason="it is installed")
def test_a_missing_peer_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install stable-baselines3"):
        next(dsac_learning.measure(["Pendulum-v1"], ["sb3_sac"], tmp_path / "a.jsonl"))
