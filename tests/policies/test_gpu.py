"""What only a GPU shows: recorded passes choose what unrecorded ones choose, and see new weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.openvla.graphs import KEPT, CudaGraphs
from vla_rl.types import ActionChunk, Observation

Observe = Callable[..., Observation]
pytestmark = pytest.mark.gpu
WAYS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "autoregressive": {"decoding": "autoregressive", "attention": "causal", "read_before": True},
}


@pytest.fixture(params=list(WAYS))
def policy(request: pytest.FixtureRequest, build: Callable[..., OpenVLAPolicy]) -> OpenVLAPolicy:
    return build(**WAYS[request.param]).to("cuda").eval()


def act(policy: OpenVLAPolicy, observation: Observation, temperature: float = 0.0) -> ActionChunk:
    return policy.act(observation, temperature, torch.Generator("cuda").manual_seed(3))


def agree(policy: OpenVLAPolicy, observation: Observation, temperature: float = 0.0) -> None:
    """Other kernels round otherwise: a token in a hundred may be another where two are nearly as good."""
    chunk = act(policy, observation, temperature)
    plain = policy.frozen_copy()
    plain._graphs.usable = lambda: False  # type: ignore[method-assign]
    expected = act(plain, observation, temperature)
    assert np.mean(chunk.tokens == expected.tokens) > 0.98
    np.testing.assert_allclose(chunk.values, expected.values, atol=2e-3)


@pytest.mark.parametrize("batch", [1, 2, 8, 11, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_passes_choose_the_same(policy: OpenVLAPolicy, observe: Observe, batch: int, temperature: float) -> None:
    for seed in range(3):
        agree(policy, observe(batch, seed), temperature)
    assert len(policy._graphs._recordings) > 0 or (batch > 8 and policy.config.decoding == "parallel")


def test_shrinking_batches_do_not_disturb_each_other(policy: OpenVLAPolicy, observe: Observe) -> None:
    for batch in (8, 3, 1, 8, 3, 1):
        agree(policy, observe(batch, batch))


def test_new_weights_are_seen(policy: OpenVLAPolicy, observation: Observation) -> None:
    """In place, as an optimiser writes them, and in other memory, as adapters or another type of weights bring."""
    before = act(policy, observation)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert not np.allclose(before.values, act(policy, observation).values, atol=1e-3)
    agree(policy, observation)
    policy.model.to(torch.bfloat16)
    policy.model.to(torch.float32)
    agree(policy, observation)
    policy.adapt(2, 2, seed=0)
    agree(policy, observation)


def test_log_probs_of_acting_and_training_agree(policy: OpenVLAPolicy, observation: Observation) -> None:
    chunk = act(policy, observation, 1.0)
    found = policy.evaluate_actions(observation, chunk.tokens, 1.0)
    np.testing.assert_allclose(found.log_probs.detach().cpu().numpy(), chunk.log_probs, atol=5e-3)


def test_only_so_many_recordings_are_kept(policy: OpenVLAPolicy) -> None:
    graphs, held = CudaGraphs(policy.model), torch.zeros(1, device="cuda")
    with torch.no_grad():
        for key in range(KEPT + 3):
            graphs.recording(key, lambda: (held, lambda: held + 1))
    assert sorted(graphs._recordings) == list(range(3, KEPT + 3))  # type: ignore[type-var]


def test_recordings_count_what_they_hold(policy: OpenVLAPolicy) -> None:
    graphs = CudaGraphs(policy.model)
    with torch.no_grad():
        held = graphs.recording("a", lambda: ((kept := torch.zeros(1 << 20, device="cuda")), lambda: kept + 1))
    # 2^20 numbers of 4 bytes are held and as many are the result, 8 MiB; libraries may keep workspaces beside them.
    assert 8 << 20 <= held.size < 100 << 20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one_records_too(policy: OpenVLAPolicy, observe: Observe) -> None:
    """An empty recording repeats its first answer."""
    policy.to("cuda:1")
    for seed in range(3):
        agree(policy, observe(2, seed))
