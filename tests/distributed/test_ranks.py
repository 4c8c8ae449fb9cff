"""Two processes give the gradient, the weights and the statistics of one: sharded, as replicas, with LoRA, by every objective."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from on_ranks import cases
from small_policy import small_policy

from vla_rl.algorithms.composition import OBJECTIVES
from vla_rl.config import ConfigError
from vla_rl.distributed.ranks import Ranks, open_ranks
from vla_rl.distributed.sharding import shard
from vla_rl.policies import PolicyError
from vla_rl.tensor_tree import load_tree

pytest.importorskip("peft")

REAL = ("ppo, sharded", "ppo, replicas", "ppo, LoRA", "everything, sharded", "warm-up, sharded")
APPROXIMATE = ("/loss", "_cost", "value/clip_fraction")
"""Statistics that one process has no exact value of either: means of losses weigh micro-batches by tokens, not by shares of
trajectories; and in a first step, where values are those at rollout, rounding decides which of two equal terms is larger."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    launch(Path(__file__).parent / "on_ranks.py", str(folder))
    return cases(Ranks()), [load_tree(folder, f"rank_{rank}") for rank in range(2)]


@pytest.mark.parametrize("name", [*REAL, *(f"linear {name}" for name in OBJECTIVES)])
def test_two_ranks_are_one(name: str, results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, ranks = results
    expected = alone[name]
    for rank in ranks:
        found = rank[name]
        stats, wanted_stats = (
            {k: v for k, v in case["stats"].items() if not k.endswith(APPROXIMATE)} for case in (found, expected)
        )
        assert stats == pytest.approx(wanted_stats, rel=1e-3, abs=1e-4)
        for part in ("gradients", "weights", "plain"):
            values, wanted = ({str(i): v for i, v in enumerate(x)} if isinstance(x, list) else x for x in (
                found.get(part, {}), expected.get(part, {})
            ))  # fmt: skip
            assert values.keys() == wanted.keys()
            for key, value in wanted.items():
                at = f"{part} {key}: "
                torch.testing.assert_close(values[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, at=at: at + m)
    for key, value in ranks[0][name]["weights"].items():
        assert torch.equal(ranks[1][name]["weights"][key], value), f"the ranks disagree on {key}"


def test_the_cases_can_fail(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """The clip binds, the gradients are not small beside the tolerance, and the update moves the weights by more than it."""
    stats = results[0]["ppo, sharded"]["stats"]
    assert stats["policy/gradient_norm"] > 0.05 and stats["value/gradient_norm"] > 0.05
    whole = torch.cat([g.flatten() for g in results[0]["ppo, sharded"]["gradients"]])
    assert whole.norm() == pytest.approx(0.05, rel=1e-3) and whole.abs().max() > 1e-3


def test_rows_of_all_ranks_are_all_rows() -> None:
    # 5 rows on 2 ranks: 0 2 4 and 1 3; the second gets row 0 once more, as padding.
    shares = [Ranks(rank, 2).rows(5) for rank in range(2)]
    assert [rows.tolist() for rows, _ in shares] == [[0, 2, 4], [1, 3, 0]]
    assert [real.tolist() for _, real in shares] == [[True, True, True], [True, True, False]]
    # More ranks than rows: the third has nothing but padding.
    rows, real = Ranks(2, 3).rows(2)
    assert rows.tolist() == [0] and real.tolist() == [False]
    assert Ranks(1, 3).share(range(8)) == [1, 4, 7]


def test_one_process_needs_no_group() -> None:
    ranks, x = Ranks(), torch.arange(3.0)
    assert ranks.leads and ranks.whole(x, 3) is x and ranks.sum(x) is x and ranks.gather("a") == ["a"] and ranks.first(2) == 2
    np.testing.assert_array_equal(ranks.rows(4)[0], np.arange(4))


def test_a_rank_takes_a_gpu_only_where_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks on a machine with one GPU may train on the CPU."""
    taken: list[int] = []
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *arguments, **named: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with open_ranks() as ranks:
        assert ranks.device(torch.device("cpu")) == torch.device("cpu") and not taken
        with pytest.raises(ConfigError, match=r"^2 ranks on a machine with 1 GPUs: .* or set run.device=cpu$"):
            ranks.device(torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert ranks.device(torch.device("cuda")) == torch.device("cuda", 1) and taken == [1]


def test_weights_of_two_types_are_not_sharded() -> None:
    policy = small_policy()
    policy.model.language_model.to(torch.bfloat16)
    with pytest.raises(PolicyError, match=r"^[^\n]*these are bfloat16 and float32[^\n]*set policy.dtype=float32$"):
        shard(policy)
