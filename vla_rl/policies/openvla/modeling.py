"""The network: vision encoders -> projector -> Llama -> logits of the action tokens, and a value.

The sequence is [<s>, image tokens of every camera, proprioception, rest of the prompt (padded), action slots]. All
slots are read from ONE forward pass, as in OpenVLA-OFT (arXiv 2502.19645).

Legend: B observations, C cameras, S image size, K tokens of one image, P proprioception size, N prompt tokens (padded),
L = A*D action slots, Q sequence length, E width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS
from vla_rl.policies.openvla.config import OpenVLAConfig
from vla_rl.policies.openvla.images import augment
from vla_rl.policies.openvla.vision import VisionBackbone


@dataclass(frozen=True)
class PolicyInputs:
    """Observations as tensors: prepared once, then sliced into mini-batches and moved between devices."""

    images: UInt8[Tensor, "B C 3 S S"]
    proprio: Float[Tensor, "B P"]
    """As the simulator gives it."""
    prompt_ids: Int64[Tensor, "B N"]
    """<s> first, padding on the right."""
    prompt_mask: Bool[Tensor, "B N"]

    def __len__(self) -> int:
        return len(self.proprio)

    def select(self, rows: Tensor | slice) -> PolicyInputs:
        return PolicyInputs(self.images[rows], self.proprio[rows], self.prompt_ids[rows], self.prompt_mask[rows])

    def to(self, device: torch.device | str) -> PolicyInputs:
        return PolicyInputs(
            self.images.to(device), self.proprio.to(device), self.prompt_ids.to(device), self.prompt_mask.to(device)
        )


class Projector(nn.Module):
    """Image features -> embeddings of the language model; `fc1..fc2` or `fc1..fc3`, as in OpenVLA."""

    def __init__(self, vision_width: int, hidden_width: int, width: int, layers: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        vision_width *= pool * pool
        self.fc1 = nn.Linear(vision_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.fc3 = nn.Linear(width, width) if layers == 3 else None

    def forward(self, features: Float[Tensor, "M G2 V"]) -> Float[Tensor, "M K E"]:
        if self.pool > 1:
            side = int(features.shape[1] ** 0.5)
            grid = features.unflatten(1, (side // self.pool, self.pool, side // self.pool, self.pool))
            features = grid.permute(0, 1, 3, 2, 4, 5).flatten(3, 5).flatten(1, 2)
        x = self.fc2(F.gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(F.gelu(x))


class ProprioProjector(nn.Module):
    """Proprioception -> one token, as in OpenVLA-OFT."""

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Float[Tensor, "B P"]) -> Float[Tensor, "B E"]:
        return self.fc2(F.gelu(self.fc1(proprio)))


class ValueHead(nn.Module):
    """Hidden state of the last prompt token -> value of the observation."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, 1)

    def forward(self, hidden: Float[Tensor, "B E"]) -> Float[Tensor, "B"]:
        return self.fc2(F.gelu(self.fc1(hidden))).squeeze(-1)


def attention_mask(valid: Bool[Tensor, "B Q"], num_slots: int, kind: str) -> Bool[Tensor, "B 1 Q Q"]:
    """Which key (last axis) each query may see.

    A query that is padding sees itself, so that its softmax is defined; nobody sees it.
    """
    length = valid.shape[1]
    index = torch.arange(length, device=valid.device)
    causal = index[None, :] <= index[:, None]
    if kind == "full":
        allowed = torch.ones_like(causal)
    elif kind == "slots":
        allowed = causal | (index >= length - num_slots)[:, None]
    else:
        allowed = causal
    return ((allowed & valid[:, None, :]) | torch.eye(length, dtype=torch.bool, device=valid.device))[:, None]


class OpenVLAModel(nn.Module):
    """See the head of this file; `forward` works on prepared inputs."""

    proprio_centre: Tensor
    proprio_scale: Tensor
    camera_embedding: nn.Parameter
    slot_embedding: nn.Parameter

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        language = config.language
        width = language.width
        self.vision_backbone = VisionBackbone(config.featurizers, config.image_size)
        self.projector = Projector(
            self.vision_backbone.width,
            config.projector_width or width,
            width,
            config.projector_layers,
            config.projector_pool,
        )
        self.proprio_projector = ProprioProjector(config.proprio_dim, width)
        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.padded_vocab_size,
                hidden_size=width,
                intermediate_size=language.mlp_width,
                num_hidden_layers=language.layers,
                num_attention_heads=language.heads,
                rms_norm_eps=language.norm_eps,
                rope_theta=language.rope_theta,
                max_position_embeddings=language.max_positions,
                initializer_range=language.initializer_range,
                tie_word_embeddings=False,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
                attn_implementation="sdpa",
            )
        )
        self.value_head = ValueHead(width, config.value_width)
        if config.camera_embedding:
            self.camera_embedding = nn.Parameter(torch.randn(len(config.cameras), width) * language.initializer_range)
        if config.slot_embedding == "learned":
            self.slot_embedding = nn.Parameter(torch.randn(config.num_slots, width) * language.initializer_range)
        self.register_buffer("proprio_centre", torch.tensor(config.proprio_centre), persistent=False)
        self.register_buffer("proprio_scale", torch.tensor(config.proprio_scale), persistent=False)

    def forward(
        self, inputs: PolicyInputs, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "B L 256"], Float[Tensor, "B"]]:
        """Float32 logits of the 256 action tokens, and values. In training mode inputs are augmented (`generator`)."""
        slots = self._slots(len(inputs))
        hidden, last_prompt_token = self._hidden(inputs, slots, generator)
        config = self.config
        rows = slice(config.vocab_size - NUM_ACTION_TOKENS, config.vocab_size)
        logits = F.linear(hidden[:, -config.num_slots :], self.language_model.lm_head.weight[rows])
        return logits.float(), self._value(hidden, last_prompt_token)

    def value(self, inputs: PolicyInputs) -> Float[Tensor, "B"]:
        """The value alone; leaves the action slots out where the prompt does not see them."""
        slots = self._slots(len(inputs))
        hidden, last_prompt_token = self._hidden(inputs, slots if self.config.attention == "full" else slots[:, :0], None)
        return self._value(hidden, last_prompt_token)

    def _slots(self, batch: int) -> Float[Tensor, "B L E"]:
        config = self.config
        if config.slot_embedding == "learned":
            return self.slot_embedding.expand(batch, -1, -1)
        return self.proprio_centre.new_zeros(batch, config.num_slots, config.language.width)

    def _value(self, hidden: Float[Tensor, "B Q E"], last_prompt_token: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        state = hidden[torch.arange(len(hidden), device=hidden.device), last_prompt_token]
        return self.value_head(state if self.config.value_gradient else state.detach()).float()

    def _hidden(
        self, inputs: PolicyInputs, slots: Float[Tensor, "B L E"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "B Q E"], Int64[Tensor, "B"]]:
        """Last hidden states, and where in the sequence each prompt ends."""
        prompt = self.language_model.get_input_embeddings()(inputs.prompt_ids)
        prefix = torch.cat([prompt[:, :1], self._image_tokens(inputs, generator), self._proprio_token(inputs, generator)], dim=1)
        sequence = torch.cat([prefix, prompt[:, 1:], slots.to(prompt.dtype)], dim=1)
        always = inputs.prompt_mask.new_ones(len(inputs), prefix.shape[1])
        valid = torch.cat([always, inputs.prompt_mask[:, 1:], always.new_ones(slots.shape[:2])], dim=1)
        # Counting valid tokens only, so that padding between prompt and slots moves no slot.
        positions = valid.long().cumsum(dim=1) - 1
        hidden = self.language_model.model(
            inputs_embeds=sequence,
            attention_mask=attention_mask(valid, slots.shape[1], self.config.attention),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return hidden, prefix.shape[1] + inputs.prompt_mask.sum(dim=1) - 2

    def _image_tokens(self, inputs: PolicyInputs, generator: torch.Generator | None) -> Float[Tensor, "B CK E"]:
        batch, cameras = inputs.images.shape[:2]
        images = inputs.images.flatten(0, 1)
        if self.training:
            images = augment(images, self.config.augmentation, generator)
        tokens = self.projector(self.vision_backbone(images)).unflatten(0, (batch, cameras))
        if self.config.camera_embedding:
            tokens = tokens + self.camera_embedding[:, None]
        return tokens.flatten(1, 2)

    def _proprio_token(self, inputs: PolicyInputs, generator: torch.Generator | None) -> Float[Tensor, "B 1 E"]:
        proprio = (inputs.proprio - self.proprio_centre.float()) / self.proprio_scale.float()
        if self.training:
            device = generator.device if generator is not None else "cpu"
            noise = torch.randn(proprio.shape, generator=generator, device=device).to(proprio.device)
            seen = torch.rand((len(proprio), 1), generator=generator, device=device).to(proprio.device)
            proprio = (proprio + self.config.proprio_noise * noise) * (seen >= self.config.proprio_dropout)
        return self.proprio_projector(proprio.to(self.proprio_projector.fc1.weight.dtype))[:, None]


def new_model(config: OpenVLAConfig, seed: int) -> OpenVLAModel:
    """A freshly initialised network; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OpenVLAModel(config)
