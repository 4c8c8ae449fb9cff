"""Two processes give the gradient, the weights and the statistics of one: sharded, as replicas, with LoRA, by every objective."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from on_ranks import cases

from vla_rl.algorithms.composition import OBJECTIVES
from vla_rl.distributed.ranks import Ranks
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
