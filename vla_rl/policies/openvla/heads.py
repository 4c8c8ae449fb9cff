"""What reads actions and values from hidden states.

Legend: B observations, A actions of a chunk, D action size, L = A*D action slots, E width of the language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCKS = 2


class RegressionHead(nn.Module):
    """OpenVLA-OFT's: hidden states of the action slots -> one action a step (arXiv 2502.19645).

    An MLP over the D states of an action side by side. Parameters have the names of
    `action_head--*_checkpoint.pt`.
    """

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = _ResidualMlp(action_dim * width, width, action_dim)

    def forward(self, states: Float[Tensor, "B L E"]) -> Float[Tensor, "B A D"]:
        return self.model(states.unflatten(1, (-1, self.action_dim)).flatten(2))


class _ResidualMlp(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(_Block(width) for _ in range(BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ValueHead(nn.Module):
    """Hidden state of the last prompt token -> value of the observation."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, 1)

    def forward(self, hidden: Float[Tensor, "B E"]) -> Float[Tensor, "B"]:
        return self.fc2(F.gelu(self.fc1(hidden))).squeeze(-1)
