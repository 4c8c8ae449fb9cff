"""The trainer with adapters: the policy moves, the start stays, and a run in two halves is a run in one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pendulum_run import pendulum_policy, pendulum_sim, train
from safetensors.numpy import load_file

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.metrics import read_metrics
from vla_rl.policies import PolicyError
from vla_rl.run import load_weights, save_weights
from vla_rl.sim.pool import SimPool

pytest.importorskip("peft")

TIMED = ("time/", "speed/")
LORA = ("policy.lora_rank=4", "policy.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def sim() -> Iterator[SimPool]:
    with closing(pendulum_sim()) as opened:
        yield opened


def result(directory: Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Weights, merged and apart, of the last checkpoint, and every metric that does not measure time."""
    checkpoint = latest_checkpoint(directory / "checkpoints" / "rl")
    assert checkpoint is not None
    folder = checkpoint / "policy"
    weights = load_file(folder / "model.safetensors") | load_file(folder / "adapters.safetensors")
    values = [record["values"] for record in read_metrics(directory)]
    return weights, [{k: v for k, v in record.items() if not k.startswith(TIMED)} for record in values]


@pytest.mark.parametrize(
    "objective",
    [(), ("objective.name=grpo", "objective.regularisers={reference: 0.01}", "rl.group_size=3")],
    ids=["ppo", "with a reference"],
)
def test_a_run_in_two_halves_is_a_run_in_one(objective: tuple[str, ...], sim: SimPool, tmp_path: Path) -> None:
    train(sim, str(tmp_path), "whole", *LORA, *objective, "rl.iterations=4")
    train(sim, str(tmp_path), "halves", *LORA, *objective, "rl.iterations=2")
    train(sim, str(tmp_path), "halves", *LORA, *objective, "rl.iterations=4")
    (weights, records), (again, records_again) = result(tmp_path / "whole"), result(tmp_path / "halves")
    assert records_again == records and weights.keys() == again.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert records[-1]["policy/ratio_deviation"] > 1e-4, "updates do not move the policy"
    start = pendulum_policy().state_dict()
    moved = {name for name, value in start.items() if not np.array_equal(weights[name], value.numpy())}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in moved, "the merged weights are those of the start"
    assert "language_model.model.embed_tokens.weight" not in moved and "language_model.lm_head.weight" not in moved


def test_adapters_of_another_start_are_refused(tmp_path: Path) -> None:
    policy, other = pendulum_policy().adapt(2, 2, seed=0), pendulum_policy()
    save_weights(policy, tmp_path)
    other.model.language_model.lm_head.weight.data += 1
    with pytest.raises(PolicyError, match="^the adapters in [^\n]* belong to other weights[^\n]*$"):
        load_weights(other.adapt(2, 2, seed=0), tmp_path)
