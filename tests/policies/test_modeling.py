"""The network: attention, padding, positions, the place where the value is read, orientation and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import OpenVLAPolicy, PolicyInputs
from vla_rl.policies.openvla.config import AugmentationConfig, FeaturizerConfig
from vla_rl.policies.openvla.images import augment, to_model_images
from vla_rl.policies.openvla.modeling import attention_mask
from vla_rl.policies.openvla.projectors import Projector
from vla_rl.types import Observation

Build = Callable[..., OpenVLAPolicy]
Observe = Callable[..., Observation]


def padded(inputs: PolicyInputs, extra: int, fill: int) -> PolicyInputs:
    """More padding behind the prompts, filled with any token."""
    return replace(
        inputs,
        prompt_ids=torch.nn.functional.pad(inputs.prompt_ids, (0, extra), value=fill),
        prompt_mask=torch.nn.functional.pad(inputs.prompt_mask, (0, extra), value=False),
    )


def test_the_mask_by_hand() -> None:
    # Sequence: two prefix tokens, one padding, two slots.
    valid = torch.tensor([[True, True, False, True, True]])
    slots = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]]
    assert attention_mask(valid, 2, "slots").int().tolist() == [[slots]]
    causal = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert attention_mask(valid, 2, "causal").int().tolist() == [[causal]]
    full = [[1, 1, 0, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]]
    assert attention_mask(valid, 2, "full").int().tolist() == [[full]]


@pytest.mark.parametrize("attention", ["slots", "full", "causal"])
@pytest.mark.parametrize("slot_embedding", ["zero", "learned"])
def test_padding_changes_nothing(build: Build, observation: Observation, attention: str, slot_embedding: str) -> None:
    policy = build(attention=attention, slot_embedding=slot_embedding)
    with torch.no_grad():
        inputs = policy.prepare(observation)
        logits, values = policy.model(inputs)
        for variant in (padded(inputs, 1, policy.prompts.pad_id), padded(inputs, 9, 7)):
            other_logits, other_values = policy.model(variant)
            assert torch.allclose(other_logits, logits, atol=1e-5) and torch.allclose(other_values, values, atol=1e-5)
        for row in range(len(observation)):
            alone = policy.prepare(observation.select([row]))
            assert alone.prompt_mask.all()
            row_logits, row_values = policy.model(alone)
            assert torch.allclose(row_logits[0], logits[row], atol=1e-5)
            assert torch.allclose(row_values[0], values[row], atol=1e-5)


def test_positions_count_valid_tokens(policy: OpenVLAPolicy, observation: Observation) -> None:
    seen = {}
    policy.model.language_model.model.register_forward_pre_hook(
        lambda module, arguments, named: seen.update(named), with_kwargs=True
    )
    inputs = padded(policy.prepare(observation), 4, 0)
    policy.model(inputs)
    # <s>, 2 cameras x 4 tokens and proprioception come before the rest of the prompt; the 6 slots end the sequence.
    for row, mask in enumerate(inputs.prompt_mask):
        prefix = 1 + 8 + 1 + int(mask.sum()) - 1
        assert seen["position_ids"][row, -6:].tolist() == list(range(prefix, prefix + 6))


def test_slots_see_each_other(build: Build, observation: Observation) -> None:
    """With the same weights a causal mask gives another result, except for the last slot, which sees all anyway (in one
    layer: in two, the slots it looks at differ)."""
    policy = build(attention="slots")
    causal = build(attention="causal")
    inputs = policy.prepare(observation)
    with torch.no_grad():
        difference = (policy.model(inputs)[0] - causal.model(inputs)[0]).abs().amax(dim=(0, 2))
    assert difference[0] > 1e-3

    slots = policy.model._slots(len(inputs)).detach().requires_grad_()
    hidden, _ = policy.model._hidden(inputs, slots, None)
    hidden[:, -6].sum().backward()
    assert slots.grad is not None and (slots.grad[:, -1].abs().sum(-1) > 0).all()


def test_the_prompt_does_not_see_the_slots_so_the_value_needs_none(policy: OpenVLAPolicy, observation: Observation) -> None:
    inputs = policy.prepare(observation)
    assert torch.allclose(policy.model.value(inputs), policy.model(inputs)[1], atol=1e-5)


@pytest.mark.parametrize("attention", ["slots", "full"])
def test_the_value_is_read_at_the_last_token_of_each_prompt(build: Build, observe: Observe, attention: str) -> None:
    """VLA-RL's released code reads position -1, which is padding: a value that ignores the instruction."""
    policy = build(attention=attention)
    one = observe(1)
    short, long = replace(one, instruction=["open"]), replace(one, instruction=["put the red mug to the right of the plate"])
    other_end = replace(one, instruction=["put the red mug to the right of the cube"])
    batch = Observation(
        images={name: np.repeat(frames, 3, axis=0) for name, frames in one.images.items()},
        proprio=np.repeat(one.proprio, 3, axis=0),
        instruction=[*short.instruction, *long.instruction, *other_end.instruction],
    )
    with torch.no_grad():
        together = policy.value(batch)
        alone = torch.cat([policy.value(o) for o in (short, long, other_end)])
        assert torch.allclose(together, alone, atol=1e-5)
        assert len({round(v, 4) for v in together.tolist()}) == 3

        inputs = policy.prepare(batch)
        hidden, last = policy.model._hidden(inputs, policy.model._slots(3), None)
    # 10 tokens stand before the rest of the prompt, whose lengths are those of the masks.
    assert last.tolist() == [10 + int(n) - 2 for n in inputs.prompt_mask.sum(1)]
    assert len(set(last.tolist())) == 2


def test_every_input_reaches_logits_and_value(policy: OpenVLAPolicy, observation: Observation) -> None:
    with torch.no_grad():
        logits, values = policy.model(policy.prepare(observation))
        black = {name: np.zeros_like(frames) for name, frames in observation.images.items()}
        changes = [replace(observation, images={**observation.images, name: black[name]}) for name in black]
        changes.append(replace(observation, proprio=observation.proprio + 1))
        changes.append(replace(observation, instruction=["close"] * len(observation)))
        for change in changes:
            other_logits, other_values = policy.model(policy.prepare(change))
            assert ((other_logits - logits).abs().amax(dim=(1, 2)) > 1e-4).all()
            assert ((other_values - values).abs() > 1e-6).all()


def test_swapping_the_cameras_matters(policy: OpenVLAPolicy, observation: Observation) -> None:
    front, wrist = policy.cameras
    swapped = replace(observation, images={front: observation.images[wrist], wrist: observation.images[front]})
    with torch.no_grad():
        difference = policy.value(swapped) - policy.value(observation)
    assert (difference.abs() > 1e-5).all()


@pytest.mark.parametrize("kinds", [("conv",), ("siglip",), ("dinov2",), ("dinov2", "siglip")])
@pytest.mark.parametrize("layers", [2, 3])
def test_vision_encoders_are_interchangeable(build: Build, observation: Observation, kinds: tuple[str, ...], layers: int) -> None:
    featurizers = tuple(
        FeaturizerConfig(kind=kind, patch_size=4, width=16, layers=1, heads=2, mlp_width=32, registers=2)  # type: ignore[arg-type]
        for kind in kinds
    )
    policy = build(featurizers=featurizers, projector_layers=layers, projector_pool=2)
    assert policy.config.image_tokens == 4
    evaluation = policy.evaluate_actions(observation, policy.act(observation, 1.0).tokens, 1.0)
    (evaluation.log_probs.sum() + evaluation.values.sum()).backward()
    names = [n for n, p in policy.model.vision_backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # DINOv2's mask token is for pre-training only; the last LayerNorm of each encoder is in use here.
    assert [n for n in names if "mask_token" not in n] == []
    assert hasattr(policy.model.vision_backbone, "fused_featurizer") == (len(kinds) == 2)


def test_a_slot_may_hold_all_tokens_of_an_action(build: Build, observation: Observation, tmp_path: Path) -> None:
    """Chunks of 3 actions of 2 numbers: 3 slots in the place of 6; token d of action a is read from slot a by layer d."""
    policy = build(slot_holds="action", proprio_width=40)
    assert (policy.config.num_tokens, policy.config.num_slots) == (6, 3)
    assert policy.config.max_prompt_tokens == build().config.max_prompt_tokens + 3
    chosen = policy.act(observation, 1.0, torch.Generator().manual_seed(0))
    evaluation = policy.evaluate_actions(observation, chosen.tokens, 1.0)
    np.testing.assert_allclose(evaluation.log_probs.detach().numpy(), chosen.log_probs, atol=1e-5)
    states = []
    policy.model.slot_reader.register_forward_hook(lambda module, inputs, output: states.append(inputs[0]))
    logits, _ = policy.model(policy.prepare(observation))
    (slots,) = states
    assert slots.shape == (len(observation), 3, 32) and logits.shape == (len(observation), 6, 256)
    weight, bias = policy.model.slot_reader.weight[32:], policy.model.slot_reader.bias[32:]  # of the second token of an action
    rows = policy.model.language_model.lm_head.weight[policy.action_tokens.first_token : policy.config.vocab_size]
    torch.testing.assert_close(logits[:, 5], (slots[:, 2] @ weight.T + bias) @ rows.T)
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    np.testing.assert_array_equal(again.act(observation, 0.0).tokens, policy.act(observation, 0.0).tokens)
    with pytest.raises(PolicyError, match="needs .* slot_holds=token"):
        build(slot_holds="action", decoding="autoregressive", attention="causal", read_before=True)


def test_logit_scale_sharpens_the_distribution(build: Build, observation: Observation, tmp_path: Path) -> None:
    plain, scaled = build(), build(logit_scale=4.0)
    logits = [policy.eval().action_logits(policy.prepare(observation)) for policy in (plain, scaled)]
    torch.testing.assert_close(logits[1], 4 * logits[0])
    chosen = scaled.act(observation, 1.0, torch.Generator().manual_seed(0))
    evaluation = plain.evaluate_actions(observation, chosen.tokens, 0.25)
    np.testing.assert_allclose(evaluation.log_probs.detach().numpy(), chosen.log_probs, atol=1e-5)
    scaled.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").config.logit_scale == 4.0
    with pytest.raises(PolicyError, match="logit_scale must be positive"):
        build(logit_scale=0.0)


def test_pooling_merges_neighbouring_features() -> None:
    # A 4x4 grid whose feature is its own index; pooled 2x2, the first token holds features 0, 1, 4, 5.
    projector = Projector(1, 4, 4, 2, pool=2)
    seen = []
    projector.fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    projector(torch.arange(16.0).view(1, 16, 1))
    assert seen[0].tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_orientation_by_hand() -> None:
    frame = torch.arange(12, dtype=torch.uint8).view(1, 2, 2, 3)
    red = {kind: to_model_images(frame, 2, kind)[0, 0].tolist() for kind in ("as_is", "flip_vertical", "rotate_180")}
    assert red == {"as_is": [[0, 3], [6, 9]], "flip_vertical": [[6, 9], [0, 3]], "rotate_180": [[9, 6], [3, 0]]}


def test_frames_are_scaled_to_the_size_of_the_policy() -> None:
    flat = torch.full((1, 7, 9, 3), 200, dtype=torch.uint8)
    assert (to_model_images(flat, 4, "as_is") == 200).all()
    halves = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    halves[:, :, 4:] = 255
    assert to_model_images(halves, 2, "as_is")[0, 0, 0, 0] < 64 < 192 < to_model_images(halves, 2, "as_is")[0, 0, 0, 1]


def test_augmentation_is_seeded_and_per_image_and_off_when_evaluating(policy: OpenVLAPolicy, observation: Observation) -> None:
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(4, 1, 1, 1)
    config = AugmentationConfig()
    one = augment(images, config, torch.Generator().manual_seed(3))
    assert torch.equal(one, augment(images, config, torch.Generator().manual_seed(3))) and one.dtype == torch.uint8
    assert all(not torch.equal(one[0], other) for other in one[1:])
    assert torch.equal(augment(images, AugmentationConfig(0, 0, 0, 0)), images)

    inputs = policy.prepare(observation)
    policy.eval()
    assert torch.equal(policy.action_logits(inputs), policy.action_logits(inputs))
    policy.train()
    assert not torch.equal(policy.action_logits(inputs), policy.action_logits(inputs))
    seeded = [policy.action_logits(inputs, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*seeded)


def test_a_shift_moves_by_its_fraction() -> None:
    image = torch.zeros((64, 3, 20, 20), dtype=torch.uint8)
    image[:, :, 10, 10] = 255
    moved = augment(image, AugmentationConfig(shift=0.1, crop=0, brightness=0, contrast=0), torch.Generator().manual_seed(0))
    mass = moved[:, 0].float()
    rows = (mass.sum(2) * torch.arange(20)).sum(1) / mass.sum((1, 2))
    # .1 of 20 pixels is 2.
    assert 1.5 < (rows - 10).abs().max() <= 2.1


def test_proprioception_noise_and_dropout(build: Build, observe: Observe) -> None:
    policy = build(proprio_noise=0.1, proprio_dropout=0.5, proprio_centre=(1.0, 2.0, 3.0), proprio_scale=(2.0, 2.0, 2.0))
    seen = []
    policy.model.proprio_projector.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    observation = observe(400)
    inputs = policy.prepare(replace(observation, proprio=np.tile(np.float32([3.0, 6.0, 3.0]), (400, 1))))
    policy.eval().model._proprio_token(inputs, None)
    assert torch.equal(seen[0], torch.tensor([[1.0, 2.0, 0.0]]).expand(400, 3))
    policy.train().model._proprio_token(inputs, torch.Generator().manual_seed(0))
    dropped = (seen[1] == 0).all(1)
    assert 0.4 < dropped.float().mean() < 0.6
    kept = seen[1][~dropped] - torch.tensor([1.0, 2.0, 0.0])
    assert kept.std().item() == pytest.approx(0.1, rel=0.15)
