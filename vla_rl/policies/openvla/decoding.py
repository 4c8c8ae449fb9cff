"""Memory of a decoder that continues its sequences token by token.

Legend: R sequences, Q tokens of their prefixes (padded), Z tokens that there is room for, H heads, S size of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import Cache, LlamaConfig, StaticCache

EXACT_UP_TO = 8
"""Sequences that a recorded step has memory for exactly; above, for a multiple of it."""


class StepMemory:
    """Keys, values and inputs of the next token of R sequences, at addresses that stay, as CUDA graphs need it."""

    def __init__(self, language: LlamaConfig, rows: int, room: int, like: Tensor) -> None:
        """On the device and of the type of `like`."""
        device = like.device
        self.cache = StaticCache(config=language, max_cache_len=room)
        head_size = language.hidden_size // language.num_attention_heads
        self.cache.early_initialization(rows, language.num_key_value_heads, head_size, like.dtype, device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.visible = torch.zeros((rows, 1, 1, room), dtype=torch.bool, device=device)

    def begin(self, prefixes: Cache, rows: Int64[Tensor, "R"], valid: Bool[Tensor, "B Q"]) -> None:
        """Continue the prefixes `rows`. What this memory has more rows than that are idle: they see nothing but themselves."""
        count, length = len(rows), valid.shape[1]
        for mine, prefix in zip(self.cache.layers, prefixes.layers, strict=True):
            mine.keys[:count, :, :length] = prefix.keys[rows]
            mine.values[:count, :, :length] = prefix.values[rows]
            mine.cumulative_length.fill_(length)
        seen = valid[rows]
        self.visible.zero_()
        self.visible[:count, 0, 0, :length] = seen
        self.positions.zero_()
        self.positions[:count, 0] = seen.sum(dim=1)

    def reveal_next(self) -> None:
        """Let every sequence see the token that is about to be written."""
        self.visible.index_fill_(3, self.cache.layers[0].cumulative_length.view(1), True)


def rounded_up(rows: int) -> int:
    """How many sequences a recorded step has memory for, so that a batch that shrinks needs few recordings."""
    return rows if rows <= EXACT_UP_TO else -(-rows // EXACT_UP_TO) * EXACT_UP_TO
