"""Logits and actions of tiny checkpoints against those of the original code (made by `make_goldens.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vla_rl.policies import load_policy
from vla_rl.policies.openvla import OpenVLAPolicy, PolicyInputs
from vla_rl.policies.openvla.original_config import CheckpointOptions
from vla_rl.types import Observation

NAMES = (
    "openvla_fused", "openvla_siglip", "openvla_dinov2", "oft_tokens", "oft_tokens_proprio", "oft_tokens_siglip", "oft_l1",
    "oft_l1_one_image",
)  # fmt: skip
Checkpoints = Callable[[str], Path]
Options = Callable[[str], CheckpointOptions]


@pytest.fixture(scope="session")
def goldens() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in Path(__file__).parent.glob("goldens_*.npz"):
        found |= dict(np.load(file))
    return found


def inputs_of(policy: OpenVLAPolicy, tiny: ModuleType, name: str) -> PolicyInputs:
    """The very pixels that the originals got: no JPEG, no crop."""
    frames = torch.from_numpy(tiny.images(tiny.CASES[name])).permute(0, 3, 1, 2)
    ids = torch.tensor([[*tiny.prompt_ids(), 29871]])
    proprio = torch.from_numpy(tiny.proprio())[None, : policy.config.proprio_dim]
    return PolicyInputs(frames[None], proprio, ids, torch.ones_like(ids, dtype=torch.bool))


def answers(policy: OpenVLAPolicy, tiny: ModuleType, name: str) -> dict[str, np.ndarray]:
    inputs, rows = inputs_of(policy, tiny, name), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        if policy.config.head == "l1":
            return {"actions": policy.action_tokens.to_commands(policy.model.regress(inputs)[0][0].double().numpy())}
        classes, _, _ = policy._choose(inputs, rows, 0.0, None)
        logits = policy.model(inputs, tokens=classes + policy.action_tokens.first_token)[0][0]
    tokens = (classes[0] + policy.action_tokens.first_token).numpy()
    return {"actions": policy.action_tokens.decode(tokens), "logits": logits[:, ::8].numpy()}


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_original(
    checkpoints: Checkpoints, options: Options, goldens: dict[str, np.ndarray], tiny: ModuleType, name: str
) -> None:
    policy = load_policy(checkpoints(name), options=replace(options(name), libero_gripper=False))
    for key, value in answers(policy, tiny, name).items():
        expected = goldens[f"{name}/{key}"].reshape(value.shape)
        assert np.abs(value - expected).max() < 1e-4, f"{key} of {name}"
        # Goldens that hardly vary would be met by anything.
        assert expected.std() > 0.05


def test_every_case_is_compared(tiny: ModuleType, goldens: dict[str, np.ndarray]) -> None:
    assert set(NAMES) == set(tiny.CASES) == {key.split("/")[0] for key in goldens}


def test_a_causal_mask_answers_otherwise(
    checkpoints: Checkpoints, options: Options, goldens: dict[str, np.ndarray], tiny: ModuleType
) -> None:
    """OpenVLA-OFT's attention is full over the whole sequence, prompt included; stock transformers would mask it causally."""
    expected = goldens["oft_tokens/logits"]
    for attention, is_the_original in (("full", True), ("causal", False)):
        policy = load_policy(checkpoints("oft_tokens"), options=replace(options("oft_tokens"), attention=attention))
        difference = float(np.abs(answers(policy, tiny, "oft_tokens")["logits"] - expected).max())
        assert difference < 1e-4 if is_the_original else difference > 0.1
    policy.model.config = replace(policy.config, attention="slots")
    assert np.abs(answers(policy, tiny, "oft_tokens")["logits"] - expected).max() > 0.1


def test_an_observation_gives_what_its_tensors_give(checkpoints: Checkpoints, options: Options, tiny: ModuleType) -> None:
    """From frames and text: the prompt ends in token 29871, proprioception is scaled, the gripper is LIBERO's."""
    name = "oft_tokens_proprio"
    policy = load_policy(checkpoints(name), options=options(name))
    frames = np.repeat(np.repeat(tiny.images(tiny.CASES[name]), 4, axis=1), 4, axis=2)[:, None]
    observation = Observation(dict(zip(policy.cameras, frames, strict=True)), tiny.proprio()[None], [tiny.INSTRUCTION])
    inputs = policy.prepare(observation)
    assert inputs.prompt_ids.tolist() == [[*tiny.prompt_ids(), 29871]]
    chunk = policy.act(observation, 0.0)
    assert chunk.actions.shape == (1, 8, 7) and set(np.unique(chunk.actions[..., -1])) <= {-1.0, 1.0}
    logits = policy.action_logits(inputs, tokens=chunk.tokens)
    assert torch.equal(policy.token_classes(chunk.tokens), logits.argmax(-1))
