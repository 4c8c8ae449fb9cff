"""What turns image features and proprioception into embeddings of the language model.

Legend: B observations, M images of G2 patches of V features, K tokens of one image, P proprioception size, E width of the
language model.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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

    def __init__(self, proprio_dim: int, hidden_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, proprio: Float[Tensor, "B P"]) -> Float[Tensor, "B E"]:
        return self.fc2(F.gelu(self.fc1(proprio)))
