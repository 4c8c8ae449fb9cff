"""The network: vision encoders -> projector -> Llama -> logits of the action tokens, and a value.

The sequence is [<s>, image tokens of every camera, proprioception, rest of the prompt (padded), action slots]. All slots are
read from ONE forward pass, as in OpenVLA-OFT (arXiv 2502.19645), or filled one after the other, as in OpenVLA (arXiv
2406.09246); then training reads them from one pass, too, in which they hold the tokens that were chosen.

Legend: B observations, C cameras, S image size or slots, K tokens of one image, P proprioception size, N prompt tokens (padded),
A actions of a chunk, D action size, L = A*D action tokens, Q sequence length, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla.action_tokens import NUM_ACTION_TOKENS
from vla_rl.policies.openvla.config import LanguageConfig, OpenVLAConfig
from vla_rl.policies.openvla.decoding import StepMemory, rounded_up
from vla_rl.policies.openvla.graphs import CudaGraphs
from vla_rl.policies.openvla.heads import RegressionHead, ValueHead
from vla_rl.policies.openvla.images import augment
from vla_rl.policies.openvla.projectors import Projector, ProprioProjector
from vla_rl.policies.openvla.prompts import END_TOKEN
from vla_rl.policies.openvla.vision import VisionBackbone

Result = TypeVar("Result")
RECORDED_PREFIXES = 8
"""Largest batch whose images and prompts are read by a recorded pass."""


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
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> PolicyInputs:
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> PolicyInputs:
        return PolicyInputs(*(change(tensor) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.proprio, self.prompt_ids, self.prompt_mask


@dataclass(frozen=True)
class Prefix:
    """All that stands before the first action token, as the decoder has read it."""

    cache: DynamicCache
    valid: Bool[Tensor, "B Q"]
    logits: Float[Tensor, "B 256"]
    """Of the first action token."""
    values: Float[Tensor, "B"]


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


def _llama(language: LanguageConfig, vocab_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=language.width,
            intermediate_size=language.mlp_width,
            num_hidden_layers=language.layers,
            num_attention_heads=language.heads,
            num_key_value_heads=language.kv_heads or language.heads,
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


class OpenVLAModel(nn.Module):
    """See the head of this file; works on prepared inputs.

    `forward`, `value`, `decode` and `regress` are the ways in: what wraps parameters (FSDP) has to know these four. Adapters
    may replace any linear layer but `lm_head`, of which only the action tokens' rows are used.
    """

    proprio_centre: Tensor
    proprio_scale: Tensor
    camera_embedding: nn.Parameter
    slot_embedding: nn.Parameter

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        language = config.language
        width = language.width
        if config.cameras:
            self.vision_backbone = VisionBackbone(config.featurizers, config.image_size)
            self.projector = Projector(
                self.vision_backbone.width,
                config.projector_width or width,
                width,
                config.projector_layers,
                config.projector_pool,
            )
        if config.proprio_dim:
            self.proprio_projector = ProprioProjector(config.proprio_dim, config.proprio_width or width, width)
        self.language_model = _llama(language, config.padded_vocab_size)
        self.value_head = ValueHead(width, config.value_width)
        if config.head == "l1":
            self.action_head = RegressionHead(config.action_dim, width)
        if config.camera_embedding and config.cameras:
            self.camera_embedding = nn.Parameter(torch.randn(len(config.cameras), width) * language.initializer_range)
        if config.slot_embedding == "learned":
            self.slot_embedding = nn.Parameter(torch.randn(config.num_slots, width) * language.initializer_range)
        if config.slot_holds == "action":
            self.slot_reader = nn.Linear(width, config.action_dim * width)
        self._register_proprio_buffers()

    def _register_proprio_buffers(self) -> None:
        self.register_buffer("proprio_centre", torch.tensor(self.config.proprio_centre), persistent=False)
        self.register_buffer("proprio_scale", torch.tensor(self.config.proprio_scale), persistent=False)

    def rebuild_buffers(self, device: torch.device | str) -> None:
        """Compute what no checkpoint stores; a model that was made on the meta device has none of it."""
        self._register_proprio_buffers()
        decoder = self.language_model.get_decoder()
        decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config)
        for module in (self, decoder.rotary_emb):
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def forward(
        self,
        inputs: PolicyInputs,
        generator: torch.Generator | None = None,
        tokens: Int64[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L 256"], Float[Tensor, "B"]]:
        """Float32 logits of the 256 action tokens, and values. In training mode inputs are augmented (`generator`).

        An autoregressive model reads the logits of each token behind those of `tokens` that stand before it.
        """
        slots = self._slots(len(inputs), tokens)
        hidden, last_prompt_token = self._hidden(inputs, slots, generator)
        states = self._slot_states(hidden, last_prompt_token, slots.shape[1])
        return self._action_logits(states), self._value(hidden, last_prompt_token)

    def value(self, inputs: PolicyInputs) -> Float[Tensor, "B"]:
        """The value alone; leaves the action slots out where the prompt does not see them."""
        seen = self.config.attention == "full"
        slots = self._slots(len(inputs), None) if seen else self._no_slots(len(inputs))
        hidden, last_prompt_token = self._hidden(inputs, slots, None)
        return self._value(hidden, last_prompt_token)

    def regress(self, inputs: PolicyInputs) -> tuple[Float[Tensor, "B A D"], Float[Tensor, "B"]]:
        """Actions of the regression head, float32 in units of the action statistics' range, and values."""
        slots = self._slots(len(inputs), None)
        hidden, last_prompt_token = self._hidden(inputs, slots, None)
        actions = self.action_head(self._slot_states(hidden, last_prompt_token, slots.shape[1]))
        return actions.float(), self._value(hidden, last_prompt_token)

    def decode(
        self,
        inputs: PolicyInputs,
        rows: Int64[Tensor, "R"],
        choose: Callable[[Float[Tensor, "R 256"], int], Int64[Tensor, "R"]],
        graphs: CudaGraphs | None = None,
    ) -> tuple[Int64[Tensor, "R L"], Float[Tensor, "R"]]:
        """Choose tokens one after the other; returns their classes in [0, 256), and values.

        `inputs` are distinct observations, whose images and prompts are encoded once; result r continues `inputs[rows[r]]`.
        `choose` gets the float32 logits of the n-th token of every result, and n. Steps are recorded in `graphs` where that
        can be.
        """
        read = self._recorded(graphs, "prefix", inputs, self._read_prefix)
        prefix = read(inputs)
        chosen = [choose(prefix.logits[rows], 0)]
        values = prefix.values[rows]
        room = prefix.valid.shape[1] + self.config.num_tokens - 1
        memory, step = self._stepper(graphs, len(rows), room)
        memory.begin(prefix.cache, rows, prefix.valid)
        for index in range(1, self.config.num_tokens):
            memory.tokens[: len(rows)] = chosen[-1] + (self.config.vocab_size - NUM_ACTION_TOKENS)
            chosen.append(choose(step()[: len(rows)], index))
        return torch.stack(chosen, dim=1), values

    def act(self, inputs: PolicyInputs, graphs: CudaGraphs | None) -> tuple[Float[Tensor, "B L 256"], Float[Tensor, "B"]]:
        """`forward` of a parallel policy, recorded in `graphs` where that can be; the result lasts until the next call."""
        return self._recorded(graphs, "forward", inputs, self)(inputs)

    def _recorded(
        self, graphs: CudaGraphs | None, name: str, inputs: PolicyInputs, run: Callable[[PolicyInputs], Result]
    ) -> Callable[[PolicyInputs], Result]:
        """`run`, replayed for small batches; large ones keep a GPU busy while Python launches what follows."""
        if graphs is None or len(inputs) > RECORDED_PREFIXES or not graphs.usable():
            return run

        def prepare() -> tuple[PolicyInputs, Callable[[], Result]]:
            held = inputs.map(torch.clone)
            return held, lambda: run(held)

        key = name, self.config.decoding, *(tensor.shape for tensor in inputs.tensors())
        recording = graphs.recording(key, prepare)

        def replay(given: PolicyInputs) -> Result:
            for mine, tensor in zip(recording.held.tensors(), given.tensors(), strict=True):
                mine.copy_(tensor)
            return recording.replay()

        return replay

    def _stepper(
        self, graphs: CudaGraphs | None, rows: int, room: int
    ) -> tuple[StepMemory, Callable[[], Float[Tensor, "R 256"]]]:
        """Memory for `rows` sequences or more, and what turns its tokens into the logits of the next ones."""
        if graphs is not None and not graphs.usable():
            graphs = None
        if graphs is not None:
            rows = rounded_up(rows)

        def prepare() -> tuple[StepMemory, Callable[[], Float[Tensor, "R 256"]]]:
            memory = StepMemory(self.language_model.config, rows, room, like=self.language_model.lm_head.weight)
            return memory, lambda: self._step(memory)

        if graphs is None:
            return prepare()
        recording = graphs.recording(("step", rows, room), prepare)
        return recording.held, recording.replay

    def _read_prefix(self, inputs: PolicyInputs) -> Prefix:
        sequence, valid, last = self._prefix(inputs, None)
        cache = DynamicCache(config=self.language_model.config)
        hidden = self._decoder(sequence, attention_mask(valid, 0, "causal"), valid.long().cumsum(dim=1) - 1, cache)
        state = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return Prefix(cache, valid, self._action_logits(state), self._value(hidden, last))

    def _step(self, memory: StepMemory) -> Float[Tensor, "R 256"]:
        memory.reveal_next()
        state = self._decoder(self._embed(memory.tokens)[:, None], memory.visible, memory.positions, memory.cache)[:, 0]
        memory.positions.add_(1)
        return self._action_logits(state)

    def _embed(self, tokens: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape E"]:
        return self.language_model.get_input_embeddings()(tokens)

    def _decoder(self, sequence: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None) -> Tensor:
        decoder = self.language_model.get_decoder()
        kept = {} if cache is None else {"cache": cache}
        output = decoder(inputs_embeds=sequence, attention_mask=mask, position_ids=positions, use_cache=cache is not None, **kept)
        return output.last_hidden_state

    def _action_logits(self, states: Float[Tensor, "*shape E"]) -> Float[Tensor, "*shape 256"]:
        rows = slice(self.config.vocab_size - NUM_ACTION_TOKENS, self.config.vocab_size)
        logits = F.linear(states, self.language_model.get_output_embeddings().weight[rows]).float()
        return logits if self.config.logit_scale == 1 else logits * self.config.logit_scale

    def _no_slots(self, batch: int) -> Float[Tensor, "B 0 E"]:
        return self.value_head.fc1.weight.new_zeros(batch, 0, self.config.language.width)

    def _slots(self, batch: int, tokens: Int64[Tensor, "B L"] | None = None) -> Float[Tensor, "B S E"]:
        """What stands behind the prompt: tokens that were chosen, or empty slots."""
        config = self.config
        if config.decoding == "autoregressive":
            if tokens is None:
                raise PolicyError("an autoregressive policy has logits only behind given action tokens")
            return self._embed(tokens[:, :-1])
        if config.slot_embedding == "learned":
            slots = self.slot_embedding.expand(batch, -1, -1)
        else:
            slots = self._no_slots(batch).new_zeros(batch, config.num_slots, config.language.width)
        if config.stop_slot:
            stop = self._embed(torch.full((batch, 1), END_TOKEN, device=slots.device))
            slots = torch.cat([slots, stop.to(slots.dtype)], dim=1)
        return slots

    def _slot_states(
        self, hidden: Float[Tensor, "B Q E"], last_prompt_token: Int64[Tensor, "B"], slots: int
    ) -> Float[Tensor, "B L E"]:
        """The states that action tokens are read from, see `OpenVLAConfig.read_before` and `slot_holds`."""
        states = hidden[:, hidden.shape[1] - slots :]
        if self.config.read_before:
            rows = torch.arange(len(hidden), device=hidden.device)
            states = torch.cat([hidden[rows, last_prompt_token][:, None], states], dim=1)
        states = states[:, : self.config.num_slots]
        if self.config.slot_holds == "token":
            return states
        return self.slot_reader(states).unflatten(2, (self.config.action_dim, -1)).flatten(1, 2)

    def _value(self, hidden: Float[Tensor, "B Q E"], last_prompt_token: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        state = hidden[torch.arange(len(hidden), device=hidden.device), last_prompt_token]
        state = state.to(self.value_head.fc1.weight.dtype)
        return self.value_head(state if self.config.value_gradient else state.detach()).float()

    def _hidden(
        self, inputs: PolicyInputs, slots: Float[Tensor, "B S E"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "B Q E"], Int64[Tensor, "B"]]:
        """Last hidden states, and where in the sequence each prompt ends."""
        sequence, valid, last_prompt_token = self._prefix(inputs, generator)
        sequence = torch.cat([sequence, slots.to(sequence.dtype)], dim=1)
        valid = F.pad(valid, (0, slots.shape[1]), value=True)
        # Counting valid tokens only, so that padding between prompt and slots moves no slot.
        positions = valid.long().cumsum(dim=1) - 1
        mask = attention_mask(valid, slots.shape[1], self.config.attention)
        return self._decoder(sequence, mask, positions), last_prompt_token

    def _prefix(
        self, inputs: PolicyInputs, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "B Q E"], Bool[Tensor, "B Q"], Int64[Tensor, "B"]]:
        """Embeddings of all that stands before the slots, which of them are not padding, and where each prompt ends."""
        prompt = self._embed(inputs.prompt_ids)
        parts = [prompt[:, :1]]
        if self.config.cameras:
            parts.append(self._image_tokens(inputs, generator))
        if self.config.proprio_dim:
            parts.append(self._proprio_token(inputs, generator))
        before = sum(part.shape[1] for part in parts)
        valid = F.pad(inputs.prompt_mask[:, 1:], (before, 0), value=True)
        return torch.cat([*parts, prompt[:, 1:]], dim=1), valid, before + inputs.prompt_mask.sum(dim=1) - 2

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
        if self.config.proprio_clip:
            proprio = proprio.clamp(-1, 1)
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


def empty_model(config: OpenVLAConfig) -> OpenVLAModel:
    """A network without memory (on the meta device), to be filled from a checkpoint; then call `rebuild_buffers`."""
    with torch.device("meta"):
        return OpenVLAModel(config)
