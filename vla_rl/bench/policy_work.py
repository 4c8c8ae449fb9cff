"""What `vla-rl bench policy` runs: a network by name, inputs for it, and the ways to act and to learn with it.

Legend: B observations (or results), N prompt tokens, L = A*D action tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import ActionStatistics, OpenVLAConfig, PolicyInputs, build_policy
from vla_rl.policies.openvla.blocks import compile_blocks, recompute_blocks, transformer_blocks
from vla_rl.policies.openvla.graphs import CudaGraphs
from vla_rl.policies.openvla.lora import add_adapters, merge_adapters
from vla_rl.policies.openvla.modeling import OpenVLAModel, empty_model
from vla_rl.policies.openvla.original_config import CheckpointOptions, ExtraParts, original_config
from vla_rl.policies.openvla.presets import PRESETS

FULL_SIZE = "openvla-7b"
"""OpenVLA's architecture with random weights."""
PROMPT_TOKENS = 24
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Workload:
    """Something to time."""

    name: str
    batch: int
    dtype: str
    tokens: int
    """Action tokens that one call chooses or learns from."""
    run: Callable[[], Any]
    weight_bytes: float
    """Bytes of weights that a call has to read at least, each pass anew."""
    useful: str | None = None
    """Workload whose FLOPs are all that this one would need; None: its own."""


def find_model(name: str, chunk_length: int, device: torch.device) -> OpenVLAModel:
    """The network of a preset, of `openvla-7b` (random weights, bfloat16), or of a policy at a path. Raises `PolicyError`."""
    if name == FULL_SIZE:
        return full_size(chunk_length, device)
    if name in PRESETS:
        policy = build_policy(
            name,
            cameras=("agentview", "robot0_eye_in_hand"),
            chunk_length=chunk_length,
            action_dim=7,
            proprio_dim=8,
            instructions=("pick up the alphabet soup and place it in the basket",),
            statistics=ActionStatistics.unit(7),
            seed=0,
        )
        return policy.to(device).model
    if not Path(name).exists() and "/" not in name:
        raise PolicyError(f"there is no policy {name!r}; give a path, {FULL_SIZE}, or one of {', '.join(sorted(PRESETS))}")
    return load_policy(name, device).model


def full_size(chunk_length: int, device: torch.device) -> OpenVLAModel:
    """Made on the device itself: 15 GB of weights never lie in host memory."""
    percentiles = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7}}
    options = CheckpointOptions(decoding="parallel", chunk_length=chunk_length)
    record = {"vision_backbone_id": "dinosiglip-vit-so-224px", "pad_to_multiple_of": 64}
    config = original_config(record, percentiles, "random", ExtraParts(), options)
    model = empty_model(config).to(torch.bfloat16).to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, config.language.initializer_range, generator=draw)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    model.rebuild_buffers(device)
    return model.eval()


def make_inputs(config: OpenVLAConfig, batch: int, device: torch.device) -> PolicyInputs:
    """Random observations with prompts of the same length."""
    draw = torch.Generator().manual_seed(0)
    size, cameras = config.image_size, len(config.cameras)
    return PolicyInputs(
        images=torch.randint(0, 256, (batch, cameras, 3, size, size), generator=draw, dtype=torch.uint8),
        proprio=torch.rand((batch, config.proprio_dim), generator=draw),
        prompt_ids=torch.randint(3, 64, (batch, PROMPT_TOKENS), generator=draw),
        prompt_mask=torch.ones((batch, PROMPT_TOKENS), dtype=torch.bool),
    ).to(device)


def with_decoding(model: OpenVLAModel, decoding: str) -> OpenVLAModel:
    """A model that shares every weight and chooses tokens the other way."""
    view = copy.copy(model)
    if decoding == "parallel":
        attention = model.config.attention if model.config.attention != "causal" else "slots"
        view.config = replace(model.config, decoding="parallel", attention=attention)
    else:
        view.config = replace(model.config, decoding="autoregressive", attention="causal", read_before=True, stop_slot=False)
    return view


def acting(model: OpenVLAModel, batch: int, dtype: str) -> list[Workload]:
    """Ways to choose `batch` chunks greedily; what takes minutes at a large batch is there for one alone."""
    config = model.config
    device = model.value_head.fc1.weight.device
    inputs, one = make_inputs(config, batch, device), make_inputs(config, 1, device)
    rows, same = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    parallel, serial = with_decoding(model, "parallel"), with_decoding(model, "autoregressive")
    all_weights, decoder = weight_bytes(model), weight_bytes(model.language_model)
    steps = all_weights + (config.num_tokens - 1) * decoder
    tokens = batch * config.num_tokens

    def work(name: str, run: Callable[[], Any], read: float, useful: str | None = None) -> Workload:
        return Workload(name, batch, dtype, tokens, torch.no_grad()(run), read, useful)

    found = [
        work("parallel", lambda: parallel(inputs)[0].argmax(-1), all_weights),
        work("autoregressive", lambda: serial.decode(inputs, rows, _greedy)[0], steps),
        work("autoregressive, HF generate", lambda: hf_generate(serial, inputs), steps, "autoregressive"),
    ]
    if batch == 1:
        found.append(work("autoregressive, no cache", lambda: decode_without_cache(serial, inputs), steps, "autoregressive"))
    if device.type == "cuda":
        graphs = CudaGraphs(model)
        found.append(work("parallel, CUDA graph", lambda: parallel.act(inputs, graphs)[0].argmax(-1), all_weights, "parallel"))
        run = partial(serial.decode, inputs, rows, _greedy, graphs)
        found.append(work("autoregressive, CUDA graphs", lambda: run()[0], steps, "autoregressive"))
    if batch > 1:
        found.append(work("parallel, one prefix", lambda: parallel(one)[0].argmax(-1)[same], all_weights))
        found.append(work("autoregressive, one prefix", lambda: serial.decode(one, same, _greedy)[0], steps))
    return found


def _greedy(logits: Tensor, step: int) -> Int64[Tensor, "B"]:
    return logits.argmax(-1)


def decode_without_cache(model: OpenVLAModel, inputs: PolicyInputs) -> Int64[Tensor, "B L"]:
    """As `OpenVLAModel.decode`, with the whole sequence encoded anew for every token."""
    first = model.config.vocab_size - 256
    tokens = torch.full((len(inputs), 1), first, device=inputs.prompt_ids.device)
    for _ in range(model.config.num_tokens):
        logits, _ = model(inputs, tokens=tokens)
        tokens = torch.cat([tokens[:, :-1], logits[:, -1:].argmax(-1) + first, tokens[:, -1:]], dim=1)
    return tokens[:, :-1] - first


def hf_generate(model: OpenVLAModel, inputs: PolicyInputs) -> Int64[Tensor, "B L"]:
    """transformers' own loop, from our embeddings of images and prompt; it chooses among all tokens of the vocabulary."""
    sequence, valid, _ = model._prefix(inputs, None)
    return model.language_model.generate(
        inputs_embeds=sequence,
        attention_mask=valid.long(),
        max_new_tokens=model.config.num_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )


@contextmanager
def learning(model: OpenVLAModel, batch: int, dtype: str, kind: str, rank: int) -> Iterator[Workload]:
    """An optimiser step on `batch` turns: "update" of all weights, with "recomputed" activations, of adapters ("LoRA"),
    with "compiled" blocks."""
    parallel = with_decoding(model, "parallel")
    device = model.value_head.fc1.weight.device
    inputs = make_inputs(model.config, batch, device)
    classes = torch.zeros((batch, model.config.num_tokens), dtype=torch.long, device=device)
    model.requires_grad_(True)
    if "LoRA" in kind:
        add_adapters(model, rank, min(rank, 16), seed=0)
    if "compiled" in kind:
        compile_blocks(model)
    if "recomputed" in kind:
        recompute_blocks(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits, values = parallel(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten()) + values.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    try:
        plain = kind.replace(", recomputed", "").replace(", compiled", "")
        useful = plain if plain != kind else None
        # Forward and backward pass each read the weights.
        yield Workload(kind, batch, dtype, batch * model.config.num_tokens, step, 2 * weight_bytes(model), useful)
    finally:
        if "recomputed" in kind:
            for block in transformer_blocks(model):
                del block.forward
        if "compiled" in kind:
            for block in transformer_blocks(model):
                block._compiled_call_impl = None
        merge_adapters(model)
        optimizer.zero_grad(set_to_none=True)


def weight_bytes(model: nn.Module) -> float:
    return float(sum(p.nbytes for p in model.parameters()))


def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions that `run` makes, counted from shapes.

    A product [m, k] x [k, n] counts 2 m k n; a convolution 2 x its outputs x what each sums over; attention of Q queries over K
    keys 4 Q K E for E = heads x head size (scores and weighted sum), masked or not; its backward pass 2.5 times that, as it
    computes the scores anew. What is element-wise counts nothing. For a decoder of P weights a forward pass of T tokens so has
    about 2 P T + 4 T^2 E per layer.
    """
    ops = torch.ops.aten
    mapping: dict[Any, Any] = {
        ops._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter:
        run()
    return float(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    batch, heads, queries, size = query
    return 4 * batch * heads * queries * key[2] * size


def _attention_backward_flops(gradient: Any, query: Any, key: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    batch, heads, queries, size = query
    return 10 * batch * heads * queries * key[2] * size
