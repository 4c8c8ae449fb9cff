"""`OpenVLAPolicy`: sampling, log-probs, gradients, checkpoints, refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_rl.algorithms.objectives import token_cross_entropy
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import ActionStatistics, OpenVLAPolicy, build_policy
from vla_rl.policies.openvla.config import AugmentationConfig
from vla_rl.policies.openvla.sampling import sample
from vla_rl.types import Observation

Build = Callable[..., OpenVLAPolicy]
Observe = Callable[..., Observation]


def test_a_chunk_has_the_shapes_of_the_protocol(policy: OpenVLAPolicy, observation: Observation) -> None:
    policy.version = 7
    chunk = policy.act(observation, 1.0)
    assert chunk.actions.shape == (6, 3, 2) and chunk.actions.dtype == np.float32
    assert chunk.tokens.shape == (6, 6) and chunk.tokens.dtype == np.int64
    assert chunk.log_probs.shape == (6, 6) and chunk.log_probs.dtype == np.float32
    assert chunk.values.shape == (6,) and chunk.values.dtype == np.float32
    assert len(chunk.prompt_tokens) == 6 and chunk.policy_version == 7
    assert np.array_equal(chunk.actions, policy.action_tokens.decode(chunk.tokens))
    assert ((chunk.tokens >= policy.config.vocab_size - 256) & (chunk.tokens < policy.config.vocab_size)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("mode", [True, False])
def test_behaviour_and_learning_agree_before_an_update_and_differ_after(
    build: Build, observation: Observation, temperature: float, mode: bool
) -> None:
    """VLA-RL's released ratio was identically 1; one that is wrong before the update would be as bad."""
    policy = build().train(mode)
    chunk = policy.act(observation, temperature, torch.Generator().manual_seed(0))
    evaluation = policy.evaluate_actions(observation, chunk.tokens, temperature)
    assert np.allclose(evaluation.log_probs.detach().numpy(), chunk.log_probs, atol=1e-5)
    assert np.allclose(evaluation.values.detach().numpy(), chunk.values, atol=1e-5)
    assert policy.model.training is mode

    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    (-evaluation.log_probs.mean() + evaluation.values.square().mean()).backward()
    optimizer.step()
    after = policy.evaluate_actions(observation, chunk.tokens, temperature)
    assert np.abs(after.log_probs.detach().numpy() - chunk.log_probs).max() > 1e-4
    assert after.log_probs.mean() > evaluation.log_probs.mean()


def test_mini_batches_agree_with_the_whole(policy: OpenVLAPolicy, observation: Observation) -> None:
    tokens = policy.act(observation, 1.0).tokens
    whole = policy.evaluate_actions(observation, tokens, 1.0)
    inputs = policy.prepare(observation)
    rows = torch.tensor([4, 1])
    part = policy.evaluate(inputs.select(rows), tokens[rows.numpy()], 1.0)
    assert torch.allclose(part.log_probs, whole.log_probs[rows], atol=1e-5)
    assert torch.allclose(part.values, whole.values[rows], atol=1e-5)
    assert torch.allclose(policy.value_of(inputs), whole.values, atol=1e-5)


def test_log_probs_are_over_the_action_tokens_only(policy: OpenVLAPolicy, observation: Observation) -> None:
    first = policy.config.vocab_size - 256
    one, every = observation.select([0]), np.arange(first, policy.config.vocab_size)
    with torch.no_grad():
        same = observation.select([0] * 256)
        total = policy.evaluate_actions(same, np.repeat(every[:, None], 6, axis=1), 1.3).log_probs.exp().sum(0)
        # Text tokens may be as likely as they like.
        before = policy.evaluate_actions(one, np.full((1, 6), first), 1.0)
        policy.model.language_model.lm_head.weight[:first] += 50.0
        after = policy.evaluate_actions(one, np.full((1, 6), first), 1.0)
    assert torch.allclose(total, torch.ones(6), atol=1e-4)
    assert torch.equal(before.log_probs, after.log_probs)


def test_the_temperature_divides_the_logits(policy: OpenVLAPolicy, observation: Observation) -> None:
    tokens = policy.act(observation, 1.0).tokens
    with torch.no_grad():
        logits = policy.action_logits(policy.prepare(observation))
        expected = torch.log_softmax(logits / 1.6, -1).gather(-1, policy.token_classes(tokens)[..., None])[..., 0]
        evaluation = policy.evaluate_actions(observation, tokens, 1.6)
    assert torch.allclose(evaluation.log_probs, expected, atol=1e-6)
    assert torch.allclose(evaluation.distribution.exp(), torch.softmax(logits / 1.6, -1), atol=1e-6)


def test_a_frozen_copy_shares_nothing(policy: OpenVLAPolicy, observation: Observation) -> None:
    copy = policy.frozen_copy()
    assert torch.equal(copy.value(observation), policy.value(observation))
    assert not any(p.requires_grad for p in copy.parameters()) and all(p.requires_grad for p in policy.parameters())
    before = next(iter(policy.parameters())).detach().clone()
    with torch.no_grad():
        next(iter(copy.parameters())).add_(1.0)
    assert torch.equal(next(iter(policy.parameters())), before)


def test_greedy_takes_the_most_likely_token(policy: OpenVLAPolicy, observation: Observation) -> None:
    chunk = policy.act(observation, 0.0)
    with torch.no_grad():
        best = policy.action_logits(policy.prepare(observation)).argmax(-1)
    assert torch.equal(policy.token_classes(chunk.tokens), best)
    assert (chunk.log_probs == 0).all()
    assert np.array_equal(policy.act(observation, 0.0).tokens, chunk.tokens)


def test_samples_follow_the_distribution() -> None:
    # Probabilities .5, .3, .2 and nothing for the other 253 classes; 10000 draws, standard deviation at most .005.
    logits = torch.full((100, 100, 256), -1e9)
    logits[..., 10], logits[..., 20], logits[..., 255] = (torch.tensor(p).log() for p in (0.5, 0.3, 0.2))
    classes, log_probs = sample(logits, 1.0, torch.Generator().manual_seed(0))
    for index, probability in ((10, 0.5), (20, 0.3), (255, 0.2)):
        chosen = classes == index
        assert chosen.float().mean().item() == pytest.approx(probability, abs=0.02)
        assert torch.allclose(log_probs[chosen].exp(), torch.tensor(probability))
    # Temperature 1/2 squares the odds: .25 : .09 : .04.
    classes, _ = sample(logits, 0.5, torch.Generator().manual_seed(0))
    assert (classes == 10).float().mean().item() == pytest.approx(0.25 / 0.38, abs=0.02)


def test_sampling_repeats_with_its_generator(policy: OpenVLAPolicy, observation: Observation) -> None:
    one, two, three = (policy.act(observation, 1.5, torch.Generator().manual_seed(seed)).tokens for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_a_generator_per_row_makes_a_row_independent_of_the_batch(policy: OpenVLAPolicy, observation: Observation) -> None:
    whole = policy.act(observation, 1.5, [torch.Generator().manual_seed(i) for i in range(6)])
    alone = policy.act(observation.select([4]), 1.5, [torch.Generator().manual_seed(4)])
    assert np.array_equal(alone.tokens[0], whole.tokens[4])
    with pytest.raises(PolicyError, match="1 generators for 6 observations"):
        policy.act(observation, 1.5, [torch.Generator()])


@pytest.mark.parametrize("value_gradient", [True, False])
def test_the_value_loss_reaches_the_trunk_only_where_it_should(
    build: Build, observation: Observation, value_gradient: bool
) -> None:
    policy = build(value_gradient=value_gradient)
    policy.value(observation).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.value_parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in policy.policy_parameters()) is value_gradient


def test_parameter_groups_are_disjoint_and_complete(policy: OpenVLAPolicy, observation: Observation) -> None:
    groups = [*policy.value_parameters(), *policy.policy_parameters()]
    assert len({id(p) for p in groups}) == len(groups) == len(list(policy.parameters()))
    policy.evaluate_actions(observation, policy.act(observation, 1.0).tokens, 1.0).log_probs.sum().backward()
    assert all(p.grad is None for p in policy.value_parameters())


def test_acting_leaves_no_gradient_and_no_random_state_behind(policy: OpenVLAPolicy, observation: Observation) -> None:
    state = torch.get_rng_state()
    policy.act(observation, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in policy.parameters())


def test_it_learns_where_a_square_is(build: Build, observe: Observe) -> None:
    """Cloning drives the token loss on seen images down: images, tokens and loss belong together."""
    draw = np.random.default_rng(0)
    images = np.full((24, 16, 16, 3), 90, np.uint8)
    corners = draw.integers(0, 13, (24, 2))
    for image, (y, x) in zip(images, corners, strict=True):
        image[y : y + 4, x : x + 4] = (255, 30, 30)
    observation = Observation(
        {"front": images, "wrist": np.zeros_like(images)}, np.zeros((24, 3), np.float32), ["lift the cube"] * 24
    )
    actions = np.repeat((corners / 6 - 1)[:, None], 3, axis=1)
    policy = build(augmentation=AugmentationConfig(0, 0, 0, 0)).train()
    inputs, targets = policy.prepare(observation), policy.token_classes(policy.encode_actions(actions))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        loss, _ = token_cross_entropy(
            policy.action_logits(inputs, generator), targets, torch.ones_like(targets, dtype=torch.bool), targets.numel()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = np.abs(policy.act(observation, 0.0).actions - actions).mean()
    assert error < 0.1, f"mean absolute error {error:.3f}; chance is about .6"


def test_a_policy_survives_saving(build: Build, observation: Observation, tmp_path: Path) -> None:
    statistics = ActionStatistics((-0.3, -1.0), (0.3, 1.0), (True, False))
    policy = build(statistics=statistics, seed=3)
    policy.version = 12
    policy.save(tmp_path)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["action_statistics.json", "config.json", "model.safetensors", "tokenizer.json"]
    state = torch.get_rng_state()
    loaded = load_policy(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.version, loaded.config, loaded.statistics, loaded.model.training) == (12, policy.config, statistics, False)
    one, two = (p.act(observation, 1.0, torch.Generator().manual_seed(0)) for p in (policy, loaded))
    assert np.array_equal(one.tokens, two.tokens) and np.array_equal(one.values, two.values)
    assert np.array_equal(one.actions, two.actions)


def test_the_seed_decides_the_weights(build: Build) -> None:
    one, two, other = (build(seed=s).model.language_model.lm_head.weight for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_newest_policy_of_a_checkpoint_or_a_run_is_found(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    for phase, step, version in (("sft", 900, 0), ("rl", 2, 20), ("rl", 10, 100)):
        policy.version = version
        policy.save(tmp_path / "run" / "checkpoints" / phase / f"step_{step:06d}" / "policy")
    (tmp_path / "run" / "checkpoints" / "rl" / ".step_000011.writing" / "policy").mkdir(parents=True)
    assert load_policy(tmp_path / "run").version == 100
    assert load_policy(tmp_path / "run" / "checkpoints" / "rl").version == 100
    assert load_policy(tmp_path / "run" / "checkpoints" / "rl" / "step_000002").version == 20


def corrupt_config(path: Path, change: Callable[[dict], None]) -> None:
    record = json.loads((path / "config.json").read_text())
    change(record)
    (path / "config.json").write_text(json.dumps(record))


def truncate(path: Path, part: float) -> None:
    os.truncate(path, int(path.stat().st_size * part))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"model.safetensors is missing"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), r"tokenizer.json is missing"),
    "half the weights": (lambda p: truncate(p / "model.safetensors", 0.5), r"model.safetensors cannot be read \(truncated"),
    "no bytes of weights": (lambda p: truncate(p / "model.safetensors", 0), r"model.safetensors cannot be read \(truncated"),
    "half the tokenizer": (lambda p: truncate(p / "tokenizer.json", 0.5), r"tokenizer.json cannot be read \(truncated"),
    "half the config": (lambda p: truncate(p / "config.json", 0.5), r"config.json cannot be read \(truncated"),
    "half the statistics": (lambda p: truncate(p / "action_statistics.json", 0.5), r"action_statistics.json cannot be read"),
    "another architecture": (
        lambda p: (p / "config.json").write_text('{"model_type": "llama"}'),
        r"config.json: this is a policy of architecture 'llama'",
    ),
    "a list": (lambda p: (p / "config.json").write_text("[1]"), r"architecture 'unknown'"),
    "wider": (
        lambda p: corrupt_config(p, lambda r: r["config"]["language"].update(mlp_width=64)),
        r"model.safetensors does not fit its config.json: tensor language_model.*mlp.* should be \[.*64.*\] and is \[.*48.*\]",
    ),
    "deeper": (
        lambda p: corrupt_config(p, lambda r: r["config"]["language"].update(layers=3)),
        r"tensor language_model.model.layers.2.* should be \[.*\] and is absent",
    ),
    "shallower": (
        lambda p: corrupt_config(p, lambda r: r["config"]["language"].update(layers=1)),
        r"tensor language_model.model.layers.1.* should be absent and is \[",
    ),
    "an unknown key": (lambda p: corrupt_config(p, lambda r: r["config"].update(wings=2)), r"unknown keys \['wings'\]"),
    "a missing key": (lambda p: corrupt_config(p, lambda r: r["config"].pop("cameras")), r"missing keys \['cameras'\]"),
    "other actions": (
        lambda p: ActionStatistics.unit(5).save(p / "action_statistics.json"),
        r"has 5 action dimensions and config.json 2",
    ),
    "a small vocabulary": (
        lambda p: corrupt_config(p, lambda r: r["config"].update(vocab_size=300)),
        r"tokenizer.json has \d+ text tokens, but config.json leaves room for 44",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_checkpoint_is_told_in_one_line(policy: OpenVLAPolicy, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    policy.save(tmp_path)
    load_policy(tmp_path)
    damage(tmp_path)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_renamed_tensor_is_named(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["value_head.fc9.bias"] = weights.pop("value_head.fc2.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(PolicyError, match=r"value_head.fc2.bias should be \[1\] and is absent"):
        load_policy(tmp_path)


def test_a_place_without_a_policy_is_told(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="it is not a folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match="there is no policy in"):
        load_policy(tmp_path)


def test_observations_that_do_not_fit_are_refused(policy: OpenVLAPolicy, observation: Observation) -> None:
    cases = {
        r"looks through \['wrist'\]; the observation has \['front'\]": replace(
            observation, images={"front": observation.images["front"]}
        ),
        r"proprioception must be finite and \[6, 3\]": replace(observation, proprio=observation.proprio[:, :2]),
        r"proprioception must be finite": replace(observation, proprio=observation.proprio * np.float32("nan")),
        r"frames of front must be uint8 \[6, H, W, 3\]": replace(
            observation, images={**observation.images, "front": observation.images["front"].astype(np.float32)}
        ),
        r"frames of wrist must be": replace(observation, images={**observation.images, "wrist": observation.images["wrist"][:5]}),
    }
    for message, case in cases.items():
        with pytest.raises(PolicyError, match=message):
            policy.act(case, 1.0)


def test_tokens_and_temperatures_that_do_not_fit_are_refused(policy: OpenVLAPolicy, observation: Observation) -> None:
    with pytest.raises(PolicyError, match="expected 6 action tokens a row"):
        policy.evaluate_actions(observation, np.zeros((6, 6), np.int64), 1.0)
    with pytest.raises(PolicyError, match="expected 6 action tokens a row"):
        policy.evaluate_actions(observation, policy.act(observation, 1.0).tokens[:, :5], 1.0)
    with pytest.raises(PolicyError, match="temperature above 0"):
        policy.evaluate_actions(observation, policy.act(observation, 1.0).tokens, 0.0)
    with pytest.raises(PolicyError, match="temperature is at least 0"):
        policy.act(observation, -1.0)


def test_an_instruction_that_does_not_fit_is_refused(policy: OpenVLAPolicy, observation: Observation) -> None:
    long = replace(observation, instruction=["open", *["grasp " * 2000] * 5])
    with pytest.raises(PolicyError, match=r"tokens with its prompt, and 2033 fit: 'grasp grasp"):
        policy.act(long, 0.0)


def test_half_precision_weights_give_float32_log_probs(policy: OpenVLAPolicy, observation: Observation) -> None:
    tokens = policy.act(observation, 1.0).tokens
    exact = policy.evaluate_actions(observation, tokens, 1.0)
    policy.model.to(torch.bfloat16)
    rough = policy.evaluate_actions(observation, tokens, 1.0)
    assert rough.log_probs.dtype == rough.values.dtype == torch.float32
    assert (rough.log_probs - exact.log_probs).abs().mean() < 0.1


def test_frames_with_negative_strides_are_taken(policy: OpenVLAPolicy, observation: Observation) -> None:
    flipped = replace(observation, images={name: f[:, ::-1, ::-1] for name, f in observation.images.items()})
    solid = replace(observation, images={name: np.ascontiguousarray(f) for name, f in flipped.images.items()})
    assert np.array_equal(policy.act(flipped, 0.0).values, policy.act(solid, 0.0).values)


@pytest.mark.parametrize("preset", ["tiny", "state", "small"])
def test_presets_build_and_act(preset: str) -> None:
    policy = build_policy(
        preset,
        cameras=("agentview",),
        chunk_length=8,
        action_dim=7,
        proprio_dim=8,
        instructions=["open the drawer"],
        statistics=ActionStatistics.unit(7),
        seed=0,
    )
    observation = Observation({"agentview": np.zeros((2, 96, 96, 3), np.uint8)}, np.zeros((2, 8), np.float32), ["open it"] * 2)
    assert policy.act(observation, 1.0).actions.shape == (2, 8, 7)


def test_a_policy_may_see_proprioception_alone(observation: Observation, tmp_path: Path) -> None:
    blind = replace(observation, images={})
    settings = {"chunk_length": 3, "action_dim": 2, "instructions": ["go"], "statistics": ActionStatistics.unit(2), "seed": 0}
    policy = build_policy("tiny", cameras=(), proprio_dim=3, **settings)
    assert not [name for name, _ in policy.model.named_parameters() if "vision" in name or name == "projector.fc1"]
    chosen = policy.act(blind, 1.0, torch.Generator().manual_seed(0))
    again = policy.evaluate_actions(blind, chosen.tokens, 1.0)
    np.testing.assert_allclose(again.log_probs.detach().numpy(), chosen.log_probs, atol=1e-5)
    policy.train().action_logits(policy.prepare(blind)).sum().backward()
    policy.eval().save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.cameras == ()
    np.testing.assert_array_equal(loaded.act(blind, 0.0).tokens, policy.act(blind, 0.0).tokens)
    with pytest.raises(PolicyError, match="needs a camera or proprioception"):
        build_policy("tiny", cameras=(), proprio_dim=0, **settings)


def test_building_something_that_does_not_exist_is_refused(build: Build) -> None:
    with pytest.raises(PolicyError, match="unknown settings of the policy: wings"):
        build(wings=2)
    with pytest.raises(PolicyError, match="divide evenly into one grid"):
        build(image_size=20)
    with pytest.raises(PolicyError, match="action statistics have 3 dimensions, the policy 2"):
        build(statistics=ActionStatistics.unit(3))
    with pytest.raises(PolicyError, match="no policy preset 'huge'; choose one of: small, state, tiny"):
        build_policy(
            "huge",
            cameras=("a",),
            chunk_length=1,
            action_dim=1,
            proprio_dim=1,
            instructions=[],
            statistics=ActionStatistics.unit(1),
            seed=0,
        )
