"""FSDP2: each rank keeps its share of weights, gradients and moments, and sees a block's weights while it computes with them.

Legend: a sharded tensor is a DTensor, cut along its first axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vla_rl.policies.base import PolicyError
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.openvla.blocks import transformer_blocks
from vla_rl.policies.sharded import whole

ENTRANCES = ("value", "decode", "regress")
"""Ways into `OpenVLAModel` beside `forward`."""


def shard(policy: OpenVLAPolicy) -> None:
    """Cut a policy's weights into the shares of all ranks, in place; its parameters are other objects afterwards.

    From then on every forward pass, `act` included, is made by all ranks together. Gradients are summed over the ranks, as
    every loss has a denominator of its own; FSDP would take their mean. Call it before making an optimiser.
    Raises `PolicyError` for weights of several types.
    """
    model = policy.model
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if len(kinds) > 1:
        raise PolicyError(
            f"policy.sharded=true needs weights of one type, and these are {' and '.join(kinds)} (a checkpoint's value head is "
            "float32 whatever its weights are); set policy.dtype=float32"
        )
    mesh = init_device_mesh(policy.device.type, (torch.distributed.get_world_size(),))
    for module in (*transformer_blocks(model), model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no other reduction, and with a factor of 1 none is needed.
            module.set_force_sum_reduction_for_comms(True)
    for name in ENTRANCES:
        register_fsdp_forward_method(model, name)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale gradients down to the norm `largest` over all parameters and ranks; returns the norm that they had."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def gathered(tree: Any) -> Any:
    """A tree of plain values with every sharded tensor whole and on the CPU; all ranks have to ask for it together."""
    if isinstance(tree, DTensor):
        return whole(tree).cpu()
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(item) for item in tree)
    return tree
