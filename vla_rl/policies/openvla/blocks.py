"""The transformer blocks of a policy: what is recomputed in the backward pass, and what is sharded as a unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the language model and of the vision transformers."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_blocks(model: nn.Module) -> None:
    """Keep only the inputs of the blocks for the backward pass, which runs them again; the gradient is the same.

    transformers' own switch works in training mode alone, and reinforcement learning evaluates actions in evaluation mode.
    """
    for block in transformer_blocks(model):
        # A partial of a bound method, unlike a closure, is copied with its block by `copy.deepcopy`.
        if not isinstance(block.forward, partial):
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]


def compile_blocks(model: nn.Module) -> None:
    """Fuse what the blocks compute (`torch.compile`), in place; a copy of the model is not compiled.

    Blocks of one kind share their code, so the first pass of a shape compiles once a kind, not once a block.
    """
    for block in transformer_blocks(model):
        block.compile()


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
