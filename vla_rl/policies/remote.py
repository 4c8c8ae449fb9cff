"""A policy behind a server, for rollouts and evaluations.

Legend: B observations, A actions of a chunk, D action size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vla_rl.policies.base import Generators, PolicyError
from vla_rl.types import ActionChunk, Observation
from vla_rl.wire import PolicyClient, WireError


class RemotePolicy:
    """Acts through `vla-rl serve`; implements `vla_rl.policies.base.ActingPolicy`.

    Each observation of a batch is a request on a connection of its own, so that the server computes them together. A server
    tells actions only: chunks have no tokens and no log-probs, and the value 0.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        """Connect. Raises `PolicyError` where there is no server, it refuses, or it is not one of this project's."""
        self._url = url
        self._token = token
        self._clients: list[PolicyClient] = []
        try:
            metadata = self._client(0).metadata
        except WireError as error:
            raise PolicyError(str(error)) from error
        try:
            self.cameras = tuple(str(name) for name in metadata["cameras"])
            self.chunk_length, self.action_dim = int(metadata["chunk_length"]), int(metadata["action_dim"])
            self.version = int(metadata["policy_version"])
        except (KeyError, TypeError, ValueError):
            self.close()
            raise PolicyError(
                f"the server at {url} does not say what its policy sees and does; start it with `vla-rl serve`"
            ) from None

    def act(self, observation: Observation, temperature: float, generator: Generators = None) -> ActionChunk:
        """As `Policy.act`. Raises `PolicyError` with what the server says, or where it is lost."""
        missing = [name for name in self.cameras if name not in observation.images]
        if missing:
            raise PolicyError(f"the policy looks through {missing}; the observation has {sorted(observation.images)}")
        batch = len(observation)
        seeds = _seeds(batch, generator) if temperature > 0 else []
        try:
            for row in range(batch):
                request = {f"images/{name}": observation.images[name][row] for name in self.cameras}
                request |= {"proprio": observation.proprio[row], "instruction": observation.instruction[row]}
                request |= {"temperature": temperature, **({"seed": seeds[row]} if seeds else {})}
                self._client(row).send(request)
            answers = [client.receive() for client in self._clients[:batch]]
            actions = np.stack([answer["actions"] for answer in answers]).astype(np.float32)
            self.version = int(answers[-1]["policy_version"])
        except WireError as error:
            self.close()
            raise PolicyError(str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise PolicyError(f"the server at {self._url} answers without actions and policy_version") from error
        return ActionChunk(
            actions=actions,
            tokens=np.zeros((batch, 0), np.int64),
            log_probs=np.zeros((batch, 0), np.float32),
            values=np.zeros(batch, np.float32),
            prompt_tokens=[np.zeros(0, np.int64)] * batch,
            policy_version=self.version,
        )

    def _client(self, row: int) -> PolicyClient:
        if row == len(self._clients):
            self._clients.append(PolicyClient(self._url, self._token))
        return self._clients[row]

    def close(self) -> None:
        """Leave the server; a later `act` connects anew."""
        while self._clients:
            self._clients.pop().close()


def _seeds(batch: int, generator: Generators) -> list[int]:
    """One a row, drawn from its own generator or from the one of the batch."""
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise PolicyError(f"{len(generator)} generators for {batch} observations")
        return [int(torch.randint(1 << 62, (1,), generator=one)) for one in generator]
    return [int(seed) for seed in torch.randint(1 << 62, (batch,), generator=generator)]
