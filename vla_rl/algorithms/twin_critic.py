"""Two distributional action values as one batched network.

Legend: M = 2 critics, B samples, I = O + D inputs (observation and action).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

CRITICS = 2


class TwinCritic(nn.Module):
    """Mean and standard deviation of the return of (observation, action), by M critics with weights of their own.

    The weights of a layer are one tensor [M, in, out], so that a layer of all critics is one batched product.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        """Weights come from torch's global generator, uniform in +-1/sqrt(inputs of the layer), as `nn.Linear` has them."""
        super().__init__()
        sizes = (inputs, *hidden, 2)
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(_uniform((CRITICS, a, b), a) for a, b in pairs)
        self.biases = nn.ParameterList(_uniform((CRITICS, 1, b), a) for a, b in pairs)

    def forward(self, inputs: Float[Tensor, "B I"]) -> tuple[Float[Tensor, "M B"], Float[Tensor, "M B"]]:
        """Means and standard deviations (> 0) of the return."""
        layers = list(zip(self.weights, self.biases, strict=True))
        value = inputs.expand(CRITICS, *inputs.shape)
        for weight, bias in layers[:-1]:
            value = gelu(torch.baddbmm(bias, value, weight))
        weight, bias = layers[-1]
        mean, spread = torch.baddbmm(bias, value, weight).unbind(-1)
        return mean, softplus(spread)


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))
