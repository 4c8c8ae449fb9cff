"""Adapters: what they leave alone, what they train, and that nobody who acts or saves misses them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.openvla.config import FeaturizerConfig
from vla_rl.policies.openvla.lora import is_adapted, plain_weights
from vla_rl.types import Observation

pytest.importorskip("peft")

Build = Callable[..., OpenVLAPolicy]


@pytest.fixture
def adapted(build: Build) -> OpenVLAPolicy:
    """With vision transformers; rank 3, and adapters that do something."""
    encoders = tuple(
        FeaturizerConfig(kind=kind, patch_size=8, width=16, layers=2, heads=2, mlp_width=32, registers=1)  # type: ignore[arg-type]
        for kind in ("dinov2", "siglip")
    )
    policy = build(featurizers=encoders).adapt(rank=3, alpha=6, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in policy.model.named_parameters():
            if ".lora_B." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    return policy


def logits(policy: OpenVLAPolicy, observation: Observation) -> torch.Tensor:
    with torch.no_grad():
        return policy.action_logits(policy.prepare(observation))


def train(policy: OpenVLAPolicy, observation: Observation, steps: int = 2) -> None:
    """Towards the first class of every token and the value 1."""
    optimizer = torch.optim.AdamW([*policy.policy_parameters(), *policy.value_parameters()], lr=1e-2)
    tokens = torch.full((len(observation), policy.config.num_tokens), policy.action_tokens.first_token)
    for _ in range(steps):
        optimizer.zero_grad()
        evaluation = policy.evaluate_actions(observation, tokens, 1.0)
        (evaluation.values.sub(1).square().mean() - evaluation.log_probs.mean()).backward()
        optimizer.step()


def test_new_adapters_change_nothing(build: Build, observation: Observation) -> None:
    """B = 0."""
    policy = build()
    before = logits(policy, observation)
    torch.testing.assert_close(logits(policy.adapt(4, 16, seed=0), observation), before, rtol=0, atol=0)


def test_every_linear_layer_but_the_last_has_one(adapted: OpenVLAPolicy) -> None:
    layers = {name for name, module in adapted.model.named_modules() if hasattr(module, "base_layer")}
    linear = {
        name.removesuffix(".base_layer")
        for name, module in adapted.model.named_modules()
        if type(module) is torch.nn.Linear and "lora_" not in name
    }
    assert linear - layers == {"language_model.lm_head", "value_head.fc1", "value_head.fc2"}
    assert {name.partition(".")[0] for name in layers} == {"vision_backbone", "projector", "proprio_projector", "language_model"}
    # 7 in each of 2 decoder layers; 6 in each of 2 layers of each vision transformer; 2 in each projector.
    assert len(layers) == 2 * 7 + 2 * 2 * 6 + 2 * 2


def test_gradients_reach_adapters_and_value_head_alone(adapted: OpenVLAPolicy, observation: Observation) -> None:
    frozen = {name: p.clone() for name, p in adapted.model.named_parameters() if "lora_" not in name and "value_head" not in name}
    trained = {name: p.clone() for name, p in adapted.model.named_parameters() if name not in frozen}
    train(adapted, observation)
    parameters = dict(adapted.model.named_parameters())
    assert all(parameters[name].grad is None and torch.equal(parameters[name], value) for name, value in frozen.items())
    assert all(not torch.equal(parameters[name], value) for name, value in trained.items())
    # R (I + O) numbers in a layer: a projector's fc2, of 32 x 32, has 3 * 64.
    counted = sum(p.numel() for name, p in parameters.items() if name.startswith("projector.fc2.lora"))
    assert counted == 3 * (32 + 32)


def test_merged_equals_unmerged(adapted: OpenVLAPolicy, observation: Observation, build: Build) -> None:
    before = logits(adapted, observation)
    plain = build(featurizers=adapted.config.featurizers)
    assert (logits(plain, observation) - before).abs().max() > 1e-2, "these adapters do nothing"
    plain.model.load_state_dict(dict(adapted.weights()))
    torch.testing.assert_close(logits(plain, observation), before, rtol=0, atol=1e-5)
    adapted.merge()
    assert not is_adapted(adapted.model)
    torch.testing.assert_close(logits(adapted, observation), logits(plain, observation), rtol=0, atol=0)
    assert all(p.requires_grad for p in adapted.parameters())


def test_one_merged_weight_by_hand(build: Build) -> None:
    """W + alpha / rank * B A with rank 1 and alpha 2: W = 0, A = [1 2 ...], B = e_0 -> row 0 is 2, 4, ..., others 0."""
    policy = build().adapt(1, 2, seed=0)
    layer = policy.model.projector.fc2
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_A["default"].weight.copy_(torch.arange(1.0, 33.0)[None])
        layer.lora_B["default"].weight.zero_()[0] = 1.0
    merged = dict(plain_weights(policy.model))["projector.fc2.weight"]
    assert merged[0].tolist() == [2.0 * i for i in range(1, 33)] and not merged[1:].any()


def test_a_saved_policy_has_the_plain_format_and_the_adapters_in_it(
    adapted: OpenVLAPolicy, observation: Observation, build: Build, tmp_path: Path
) -> None:
    train(adapted, observation)
    adapted.save(tmp_path)
    plain = build(featurizers=adapted.config.featurizers)
    assert set(load_file(tmp_path / "model.safetensors")) == set(plain.model.state_dict())
    torch.testing.assert_close(logits(load_policy(tmp_path), observation), logits(adapted, observation), rtol=0, atol=1e-5)


def test_who_acts_sees_the_adapters(adapted: OpenVLAPolicy, observation: Observation) -> None:
    """VLA-RL's code sent rollouts the frozen weights without the adapters, so that they never changed."""
    before = adapted.act(observation, 1.0, torch.Generator().manual_seed(0))
    train(adapted, observation)
    after = adapted.act(observation, 1.0, torch.Generator().manual_seed(0))
    assert abs(after.log_probs - before.log_probs).max() > 1e-3
    with torch.no_grad():
        expected = adapted.evaluate_actions(observation, after.tokens, 1.0).log_probs
    torch.testing.assert_close(torch.from_numpy(after.log_probs), expected, rtol=0, atol=1e-5)


def test_a_frozen_copy_keeps_its_adapters_and_shares_what_never_changes(adapted: OpenVLAPolicy, observation: Observation) -> None:
    copy, before = adapted.frozen_copy(), logits(adapted, observation)
    train(adapted, observation)
    assert not any(p.requires_grad for p in copy.parameters())
    torch.testing.assert_close(logits(copy, observation), before, rtol=0, atol=0)
    theirs = dict(copy.model.named_parameters())
    shared = {name for name, p in adapted.model.named_parameters() if theirs[name] is p}
    assert shared == {name for name in theirs if "lora_" not in name and "value_head" not in name}
    copy.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(logits(copy, observation), logits(adapted, observation), rtol=0, atol=0)


def test_the_state_is_what_trains(adapted: OpenVLAPolicy) -> None:
    assert all("lora_" in name or name.startswith("value_head.") for name in adapted.state_dict())
    with pytest.raises(PolicyError, match="names differ"):
        adapted.load_state_dict({name: value for name, value in adapted.state_dict().items() if "fc1" not in name})


def test_bfloat16_weights_have_float32_adapters(build: Build, observation: Observation) -> None:
    policy = build()
    policy.model.to(torch.bfloat16)
    policy.adapt(4, 4, seed=0)
    assert {p.dtype for p in policy.policy_parameters()} == {torch.float32}
    train(policy, observation, steps=1)
    assert {value.dtype for name, value in policy.weights()} == {torch.bfloat16}


def test_seeds_decide_and_the_global_random_state_stays(build: Build) -> None:
    state = torch.get_rng_state()
    one, same, other = (build().adapt(2, 2, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = "projector.fc1.lora_A.default.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_a_second_adapter_is_refused(adapted: OpenVLAPolicy) -> None:
    with pytest.raises(PolicyError, match="^[^\n]*has adapters already[^\n]*$"):
        adapted.adapt(2, 2, seed=0)


def test_without_peft_one_line_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(PolicyError, match=r"^LoRA needs peft; install it with: pip install 'vla_rl\[lora\]'[^\n]*$"):
        build().adapt(2, 2, seed=0)
