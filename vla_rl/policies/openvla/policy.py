"""`OpenVLAPolicy`: the network with its tokenizers, behind the `Policy` interface.

Legend: B observations, C cameras, A actions of a chunk, D action size, L = A*D action tokens, N prompt tokens (padded).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.policies.base import ActionEvaluation, Generators, PolicyError
from vla_rl.policies.digest import digest
from vla_rl.policies.locate import check_files
from vla_rl.policies.openvla import checkpoint, original_format
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS, ActionStatistics, ActionTokenizer
from vla_rl.policies.openvla.blocks import compile_blocks, recompute_blocks
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.evaluation_images import evaluation_images
from vla_rl.policies.openvla.graphs import CudaGraphs
from vla_rl.policies.openvla.images import to_model_images, turn
from vla_rl.policies.openvla.lora import add_adapters, frozen_weights, is_adapted, merge_adapters, plain_weights, trained_state
from vla_rl.policies.openvla.modeling import OpenVLAModel, PolicyInputs
from vla_rl.policies.openvla.original_config import CheckpointOptions
from vla_rl.policies.openvla.original_format import Original
from vla_rl.policies.openvla.prompts import PromptTokenizer
from vla_rl.policies.openvla.sampling import distinct_rows, draw, sample, uniform_numbers
from vla_rl.policies.sharded import cut_like
from vla_rl.types import ActionChunk, Observation


class OpenVLAPolicy:
    """An OpenVLA-style token policy with a value head; implements `vla_rl.policies.base.Policy`.

    `act`, `evaluate*` and `value*` run in evaluation mode whatever the mode of the policy; `action_logits` is for
    supervised training and augments its inputs in training mode.
    """

    def __init__(
        self,
        config: OpenVLAConfig,
        prompts: PromptTokenizer,
        statistics: ActionStatistics,
        model: OpenVLAModel,
        version: int = 0,
        original: Original | None = None,
    ) -> None:
        """`original` is what a checkpoint in OpenVLA's own format holds beside; such a policy is saved in that format."""
        if statistics.action_dim != config.action_dim:
            raise PolicyError(f"action statistics have {statistics.action_dim} dimensions, the policy {config.action_dim}")
        self.config = config
        self.prompts = prompts
        self.statistics = statistics
        self.model = model
        self.version = version
        self.original = original
        self.action_tokens = ActionTokenizer(config.vocab_size, statistics)
        self.cameras = config.cameras
        self.chunk_length = config.chunk_length
        self.action_dim = config.action_dim
        self._frozen_digest: str | None = None
        self._graphs = CudaGraphs(model)

    # -- acting -------------------------------------------------------------------------------------------------------

    # Batches shrink as episodes end and caches grow: compiled blocks would be compiled anew again and again.
    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, generator: Generators = None) -> ActionChunk:
        """Choose chunks; temperature 0 is greedy, and its log-probs are 0 (all mass on one token).

        `generator` may be one per observation: then a row's draw does not depend on the rest of the batch.
        Raises `PolicyError` for an observation that does not fit this policy.
        """
        self._check(observation)
        distinct, rows = distinct_rows(observation)
        inputs = self.prepare(observation.select(distinct) if len(distinct) < len(rows) else observation)
        where = torch.from_numpy(rows).to(self.device)
        with self._evaluation_mode():
            if self.config.head == "l1":
                return self._regress(observation, inputs, where, temperature)
            classes, log_probs, values = self._choose(inputs, where, temperature, generator)
        tokens = (classes + self.action_tokens.first_token).cpu().numpy()
        return self._chunk(observation, self.action_tokens.decode(tokens), tokens, log_probs, values)

    def _choose(
        self, inputs: PolicyInputs, rows: Int64[Tensor, "B"], temperature: float, generator: Generators
    ) -> tuple[Int64[Tensor, "B L"], Float[Tensor, "B L"], Float[Tensor, "B"]]:
        """Token classes, their log-probs and values, of `inputs[rows]`."""
        if self.config.decoding == "parallel":
            logits, values = self.model.act(inputs, self._graphs)
            return *sample(logits[rows], temperature, generator), values[rows]
        tokens = self.config.num_tokens
        uniform = uniform_numbers(len(rows), tokens, generator) if temperature else torch.zeros(1, tokens)
        log_probs: list[Tensor] = []

        def choose(logits: Float[Tensor, "B 256"], step: int) -> Int64[Tensor, "B"]:
            classes, of_classes = draw(logits[:, None], temperature, uniform[:, step : step + 1])
            log_probs.append(of_classes)
            return classes.squeeze(1)

        classes, values = self.model.decode(inputs, rows, choose, self._graphs)
        return classes, torch.cat(log_probs, dim=1), values

    def _regress(
        self, observation: Observation, inputs: PolicyInputs, rows: Int64[Tensor, "B"], temperature: float
    ) -> ActionChunk:
        """Chunks of the regression head; their tokens are those nearest to the actions."""
        if temperature:
            raise PolicyError(f"{self.why_no_token_training}; act with temperature 0")
        normalised, values = self.model.regress(inputs)
        actions = self.action_tokens.to_commands(normalised[rows].double().cpu().numpy()).astype(np.float32)
        tokens = self.encode_actions(actions)
        return self._chunk(observation, actions, tokens, torch.zeros(tokens.shape), values[rows])

    def _chunk(
        self, observation: Observation, actions: np.ndarray, tokens: np.ndarray, log_probs: Tensor, values: Tensor
    ) -> ActionChunk:
        return ActionChunk(
            actions=actions,
            tokens=tokens,
            log_probs=log_probs.cpu().numpy(),
            values=values.cpu().numpy(),
            prompt_tokens=[self.prompts.encode(instruction) for instruction in observation.instruction],
            policy_version=self.version,
        )

    @property
    def why_no_token_training(self) -> str | None:
        """Why this policy cannot learn by log-probs of action tokens; None where it can."""
        if self.config.head == "tokens":
            return None
        return (
            "this checkpoint acts through an L1-regression head: it has no distribution over action tokens, and its lm_head was "
            "never trained to give one (success 0, gradients near 0); start from a checkpoint that was fine-tuned on tokens"
        )

    def evaluate_actions(
        self, observation: Observation, tokens: Int64[np.ndarray, "B L"] | Tensor, temperature: float
    ) -> ActionEvaluation:
        """Log-probs (nat, float32) of tokens and of all classes at a temperature > 0, and values; with gradient."""
        return self.evaluate(self.prepare(observation), tokens, temperature)

    def evaluate(self, inputs: PolicyInputs, tokens: Int64[np.ndarray, "B L"] | Tensor, temperature: float) -> ActionEvaluation:
        """As `evaluate_actions`, of prepared inputs."""
        if temperature <= 0:
            raise PolicyError(f"log-probs need a temperature above 0, not {temperature}")
        if self.why_no_token_training:
            raise PolicyError(self.why_no_token_training)
        classes = self.token_classes(tokens)
        with self._evaluation_mode():
            logits, values = self.model(inputs, tokens=classes + self.action_tokens.first_token)
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        return ActionEvaluation(
            log_probs=log_p.gather(-1, classes[..., None]).squeeze(-1),
            distribution=log_p,
            values=values,
        )

    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """Values of observations, with gradient."""
        return self.value_of(self.prepare(observation))

    def value_of(self, inputs: PolicyInputs) -> Float[Tensor, "B"]:
        """Values of prepared inputs, with gradient."""
        with self._evaluation_mode():
            return self.model.value(inputs)

    # -- supervised training ------------------------------------------------------------------------------------------

    def action_logits(
        self,
        inputs: PolicyInputs,
        generator: torch.Generator | None = None,
        tokens: Int64[np.ndarray, "B L"] | Tensor | None = None,
    ) -> Float[Tensor, "B L 256"]:
        """Float32 logits of the action tokens; in training mode with image augmentation and proprioception noise.

        An autoregressive policy needs `tokens`, whose logits they are.
        """
        if self.why_no_token_training:
            raise PolicyError(self.why_no_token_training)
        given = None if tokens is None else self.token_classes(tokens) + self.action_tokens.first_token
        return self.model(inputs, generator, given)[0]

    def encode_actions(self, actions: Float[np.ndarray, "*batch A D"]) -> Int64[np.ndarray, "*batch L"]:
        """Action tokens of commands."""
        return self.action_tokens.encode(actions)

    def token_classes(self, tokens: Int64[np.ndarray, "*batch L"] | Tensor) -> Int64[Tensor, "*batch L"]:
        """Action tokens -> indices in [0, 256) of `action_logits`, on the policy's device."""
        classes = torch.as_tensor(tokens, device=self.device, dtype=torch.long) - self.action_tokens.first_token
        if classes.shape[-1] != self.config.num_tokens or (
            classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= NUM_ACTION_TOKENS)
        ):
            raise PolicyError(
                f"expected {self.config.num_tokens} action tokens a row with ids {self.action_tokens.first_token} to "
                f"{self.config.vocab_size - 1}; were these actions chosen by a policy with another vocabulary?"
            )
        return classes

    # -- inputs -------------------------------------------------------------------------------------------------------

    def prepare(self, observation: Observation) -> PolicyInputs:
        """Observations as tensors on the policy's device. Raises `PolicyError` naming what does not fit."""
        self._check(observation)
        config = self.config
        images = []
        for name in self.cameras:
            frames = np.asarray(observation.images[name])
            if config.image_pipeline == "bilinear":
                # torch cannot view arrays with negative strides, such as frames that a simulator turned around.
                tensor = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
                images.append(to_model_images(tensor, config.image_size, config.image_orientation))
            else:
                crop = config.image_pipeline == "published"
                turned = turn(frames, config.image_orientation)
                images.append(evaluation_images(turned, config.image_size, crop, self.device))
        proprio = torch.from_numpy(np.asarray(observation.proprio, dtype=np.float32)[:, : config.proprio_dim])
        prompt_ids, prompt_mask = self._prompts(observation.instruction)
        nothing = torch.zeros(len(proprio), 0, 3, config.image_size, config.image_size, dtype=torch.uint8, device=self.device)
        return PolicyInputs(torch.stack(images, dim=1) if images else nothing, proprio.to(self.device), prompt_ids, prompt_mask)

    def _check(self, observation: Observation) -> None:
        missing = [name for name in self.cameras if name not in observation.images]
        if missing:
            raise PolicyError(f"the policy looks through {missing}; the observation has {sorted(observation.images)}")
        batch, proprio_dim = len(observation.instruction), self.config.proprio_dim
        proprio = np.asarray(observation.proprio, dtype=np.float32)
        if proprio_dim and (proprio.shape != (batch, proprio_dim) or not np.isfinite(proprio).all()):
            raise PolicyError(
                f"proprioception must be finite and [{batch}, {proprio_dim}] for {batch} instructions; "
                f"it is {list(proprio.shape)}"
            )
        for name in self.cameras:
            frames = np.asarray(observation.images[name])
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[0] != batch or frames.shape[-1] != 3:
                raise PolicyError(f"frames of {name} must be uint8 [{batch}, H, W, 3]; they are {frames.dtype} {frames.shape}")
            if self.config.image_pipeline != "bilinear" and frames.shape[1] != frames.shape[2]:
                raise PolicyError(
                    f"frames of {name} are {frames.shape[1]} x {frames.shape[2]} px; this checkpoint was trained on square ones, "
                    "so crop them or set sim.image_size"
                )

    def _prompts(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        prompts = [self.prompts.encode(instruction) for instruction in instructions]
        ids = np.full((len(prompts), max(map(len, prompts), default=1)), self.prompts.pad_id, dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        if ids.shape[1] > self.config.max_prompt_tokens:
            raise PolicyError(
                f"an instruction has {ids.shape[1]} tokens with its prompt, and {self.config.max_prompt_tokens} fit: "
                f"{max(instructions, key=len)[:60]!r}..."
            )
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    # -- weights ------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.proprio_scale.device

    def to(self, device: torch.device | str) -> OpenVLAPolicy:
        self.model.to(device)
        return self

    def train(self, mode: bool = True) -> OpenVLAPolicy:
        self.model.train(mode)
        return self

    def eval(self) -> OpenVLAPolicy:
        return self.train(False)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def value_parameters(self) -> list[nn.Parameter]:
        """Of the value head."""
        return list(self.model.value_head.parameters())

    def policy_parameters(self) -> list[nn.Parameter]:
        """All that train but the value head's; the value loss reaches them too where `config.value_gradient`."""
        return [p for name, p in self.model.named_parameters() if not name.startswith("value_head.") and p.requires_grad]

    @property
    def is_adapted(self) -> bool:
        return is_adapted(self.model)

    def adapt(self, rank: int, alpha: int, seed: int) -> OpenVLAPolicy:
        """From now on train adapters of this rank, scaled by alpha / rank, beside the value head, and nothing else (LoRA)."""
        add_adapters(self.model, rank, alpha, seed)
        self._frozen_digest = None
        return self

    def merge(self) -> OpenVLAPolicy:
        """Make adapters part of the weights, which train in full again; for a policy without any nothing changes."""
        merge_adapters(self.model)
        return self

    def frozen_digest(self) -> str:
        """The content of the weights that adapters leave alone. Computed once, as it takes seconds for billions of them."""
        if self._frozen_digest is None:
            self._frozen_digest = digest(frozen_weights(self.model))
        return self._frozen_digest

    def recompute_activations(self) -> OpenVLAPolicy:
        """Spend a second forward pass in the backward pass to keep only the inputs of the transformers' layers in memory."""
        recompute_blocks(self.model)
        return self

    def compile_blocks(self) -> OpenVLAPolicy:
        """Fuse what the transformers' layers compute, see `torch.compile`; call it after `adapt`."""
        compile_blocks(self.model)
        return self

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by name, adapters merged, gathered from all ranks, on the CPU: what `save` writes."""
        return plain_weights(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """What training can change: all weights, or adapters and value head of an adapted policy."""
        return trained_state(self.model) if self.is_adapted else self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises `PolicyError` where names differ, `RuntimeError` where shapes do."""
        own = self.state_dict()
        differ = sorted(state.keys() ^ own.keys())
        if differ:
            raise PolicyError(f"the weights are of another policy: {len(differ)} names differ, such as {differ[0]}")
        self.model.load_state_dict({name: cut_like(tensor, own[name]) for name, tensor in state.items()}, strict=False)

    def frozen_copy(self) -> OpenVLAPolicy:
        """A policy with the same weights that takes no gradient and shares none but frozen ones."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        model = copy.deepcopy(self.model, shared).requires_grad_(False).eval()
        return OpenVLAPolicy(self.config, self.prompts, self.statistics, model, self.version, self.original)

    def save(self, path: Path) -> None:
        """Write the policy into the folder `path`: in the format of the checkpoint that it comes from, or as config.json,
        tokenizer.json, action_statistics.json and model.safetensors. Adapters become part of the weights."""
        weights = dict(self.weights())
        if self.original is not None:
            original_format.write(Path(path), self.config, self.original, weights, self.version)
        else:
            checkpoint.write(Path(path), self.config, self.prompts, self.statistics, weights, self.version)

    @staticmethod
    def load(
        path: Path,
        device: torch.device | str = "cpu",
        options: CheckpointOptions | None = None,
        dtype: torch.dtype | None = None,
        verify: bool = True,
    ) -> OpenVLAPolicy:
        """What `save` wrote, or an original checkpoint, in evaluation mode; see `vla_rl.policies.load_policy`."""
        folder, options = checkpoint.find(Path(path)), options or CheckpointOptions()
        if verify:
            check_files(folder)
        if original_format.is_original(folder):
            found = original_format.read(folder, options, device, dtype)
            parts = found.config, found.prompts, found.statistics, found.model, found.version
            return OpenVLAPolicy(*parts, original=found.original).eval()
        policy = OpenVLAPolicy(*checkpoint.read(folder, options)).to(device).eval()
        if dtype is not None:
            policy.model.to(dtype)
        return policy

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            yield
        finally:
            if was_training:
                self.model.train()
