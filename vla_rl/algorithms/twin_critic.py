"""Two distributional action values as one batched network.

Legend: M = 2 critics, B samples, I = O + D inputs (observation and action), H width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, softplus

CRITICS = 2


class TwinCritic(nn.Module):
    """Mean and standard deviation of the return of (observation, action), by M critics with weights of their own.

    The weights of a layer are one tensor [M, out, in], so that a layer of all critics is one batched product.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        """Weights come from torch's global generator, uniform in +-1/sqrt(inputs of the layer), as `nn.Linear` has them."""
        super().__init__()
        sizes = (inputs, *hidden, 2)
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(_uniform((CRITICS, b, a), a) for a, b in pairs)
        self.biases = nn.ParameterList(_uniform((CRITICS, b), a) for a, b in pairs)

    def forward(self, inputs: Float[Tensor, "B I"], frozen: bool = False) -> tuple[Float[Tensor, "M B"], Float[Tensor, "M B"]]:
        """Means and standard deviations (> 0) of the return; `frozen`: with the gradient of the inputs alone."""
        parameters = [*self.weights, *self.biases]
        if frozen:
            parameters = [parameter.detach() for parameter in parameters]
        mean, spread = _Layers.apply(inputs, *parameters).unbind(1)
        return mean, softplus(spread)


class _Layers(torch.autograd.Function):
    """The layers with GELU between them, and their gradient by hand.

    By hand, because autograd would spend three quarters more on what the actor's update needs, which is the gradient of the
    inputs alone, and of the smaller value only: no gradient of weights, and none of the samples in which the other critic is
    the smaller. The last layer is computed with samples along the rows, which suits its two outputs.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Float[Tensor, "B I"], *parameters: Tensor) -> Float[Tensor, "M 2 B"]:
        weights, biases = _halves(parameters)
        value = inputs.expand(CRITICS, *inputs.shape)
        layers: list[Tensor] = []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            before = torch.baddbmm(bias.unsqueeze(1), value, weight.mT)
            value = gelu(before)
            layers += (before, value)
        ctx.save_for_backward(inputs, *weights, *layers)
        ctx.depth = len(weights)
        return torch.baddbmm(biases[-1].unsqueeze(2), weights[-1], value.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "M 2 B"]) -> tuple[Tensor | None, ...]:
        inputs, weights, layers = _split(ctx)
        if not any(ctx.needs_input_grad[1:]):
            return _input_gradient(inputs, weights, layers[::2], gradient), *[None] * (2 * ctx.depth)
        values = [inputs.expand(CRITICS, *inputs.shape), *layers[1::2]]
        of_weights, of_biases = [torch.bmm(gradient, values[-1])], [gradient.sum(2)]
        back = torch.bmm(gradient.mT, weights[-1])
        for index in range(ctx.depth - 2, -1, -1):
            back = torch.ops.aten.gelu_backward(back, layers[2 * index])
            of_weights.append(torch.bmm(back.mT, values[index]))
            of_biases.append(back.sum(1))
            if index or ctx.needs_input_grad[0]:
                back = torch.bmm(back, weights[index])
        return back.sum(0) if ctx.needs_input_grad[0] else None, *of_weights[::-1], *of_biases[::-1]


def _input_gradient(
    inputs: Float[Tensor, "B I"], weights: Sequence[Tensor], before: Sequence[Tensor], gradient: Float[Tensor, "M 2 B"]
) -> Float[Tensor, "B I"]:
    """Gradient of the inputs, critic by critic, through the samples that have one."""
    total = torch.zeros_like(inputs)
    for k, of_critic in enumerate(gradient.unbind(0)):
        rows = of_critic.any(0).nonzero().squeeze(1)
        back = of_critic[:, rows].T @ weights[-1][k]
        for weight, value in zip(weights[-2::-1], before[::-1], strict=True):
            back = torch.ops.aten.gelu_backward(back, value[k, rows]) @ weight[k]
        total.index_add_(0, rows, back)
    return total


def _split(ctx: Any) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    inputs, *rest = ctx.saved_tensors
    return inputs, rest[: ctx.depth], rest[ctx.depth :]


def _halves(parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Weights and biases."""
    return parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))
