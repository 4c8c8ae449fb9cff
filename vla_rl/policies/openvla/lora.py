"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + alpha / rank * B A x, where W stays as it was.

As OpenVLA's `finetune.py` and VLA-RL do it: in every linear layer of the vision encoders, the projectors and the language
model but its output layer, A drawn from N(0, 1/rank), B = 0, no dropout. The value head is new and has no adapter: it is
trained in full.

Legend: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_rl.policies.base import PolicyError
from vla_rl.policies.sharded import whole

ADAPTER = "default"
INSTALL_PEFT = "LoRA needs peft; install it with: pip install 'vla_rl[lora]', or set policy.lora_rank=0"


def add_adapters(model: nn.Module, rank: int, alpha: int, seed: int) -> None:
    """Freeze `model` but for its value head, and give every other linear layer an adapter, in place.

    The adapters are float32 whatever the weights are, as bfloat16 would swallow their small steps. Leaves the global random
    state as it was. Raises `PolicyError` where the model has adapters already or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise PolicyError(INSTALL_PEFT) from None
    if is_adapted(model):
        raise PolicyError("the policy has adapters already; merge them before it gets new ones")
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not _is_head(name)]
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(name))
        if _is_adapter(name):
            parameter.data = parameter.data.float()


def is_adapted(model: nn.Module) -> bool:
    return any(_is_adapter(name) for name, _ in model.named_parameters())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training can change in an adapted model: adapters and value head."""
    return {name: tensor for name, tensor in model.state_dict().items() if _trains(name)}


def frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What training cannot change in an adapted model; in a sharded one every rank must go through all of them."""
    for name, tensor in model.state_dict().items():
        if not _trains(name):
            yield name, whole(tensor)


def plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names that they have without adapters, merged and on the CPU, one after another.

    In a sharded model every rank must go through all of them. A bfloat16 sum rounds what its adapter adds.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        if _is_adapter(name):
            continue
        weight = whole(tensor)
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (whole(state[f"{layer}.lora_{part}.{ADAPTER}.weight"]) for part in ("A", "B"))
            weight = _merged(weight, down, up, _scaling(model.get_submodule(layer)))
        yield name.replace(".base_layer.", "."), weight.to("cpu", copy=True).contiguous()


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights and take them out again, in place; everything trains from then on."""
    if not is_adapted(model):
        return
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            base, down, up = module.base_layer, module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            base.weight.data = _merged(base.weight.data, down.data, up.data, _scaling(module))
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base)
    del model.peft_config
    model.requires_grad_(True)


def _merged(
    weight: Float[Tensor, "O I"], down: Float[Tensor, "R I"], up: Float[Tensor, "O R"], scaling: float
) -> Float[Tensor, "O I"]:
    return (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)


def _scaling(layer: nn.Module) -> float:
    return float(layer.scaling[ADAPTER])  # type: ignore[index, union-attr, arg-type]


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _is_head(name: str) -> bool:
    return name.startswith(("value_head.", "action_head.")) or name.endswith("lm_head")


def _trains(name: str) -> bool:
    return _is_adapter(name) or name.startswith("value_head.")
