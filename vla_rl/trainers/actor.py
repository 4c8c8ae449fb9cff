"""Who acts while a policy is trained: the policy itself, or, where its weights are cut into shares, a whole copy that follows it.

Legend: B trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.distributed.sharding import shard
from vla_rl.distributed.weight_sync import WeightFollower, WeightPublisher
from vla_rl.metrics import Stopwatch
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.rollout.batch import final_values
from vla_rl.rollout.collector import collect
from vla_rl.rollout.groups import groups_from_tree, groups_to_tree
from vla_rl.run import Run
from vla_rl.sim.base import VectorSim
from vla_rl.types import EpisodeSpec, Trajectory


class Actor:
    """Acts on every rank in that rank's simulators, without waiting for the others in each forward pass."""

    def __init__(self, run: Run, policy: OpenVLAPolicy) -> None:
        """Make it before the policy is cut."""
        self._run, self._ranks = run, run.ranks
        self._sharded = run.config.policy.sharded and run.ranks.size > 1
        self.policy = policy.frozen_copy() if self._sharded else policy
        self._publisher, self._follower = WeightPublisher(policy), WeightFollower(self.policy)

    @property
    def shard(self) -> Callable[[OpenVLAPolicy], None] | None:
        """How the learner is to cut policies; None where every rank keeps all of them."""
        return shard if self._sharded else None

    def follow(self) -> None:
        """Take the learner's weights over. Raises `WeightSyncError` where they did not arrive."""
        if self._sharded:
            self._follower.apply(self._publisher.publish())

    def rollouts(
        self, sim: VectorSim, seed: int, stopwatch: Stopwatch, on_episode: Callable[[Trajectory], None]
    ) -> Callable[[Sequence[EpisodeSpec]], list[Trajectory]]:
        """Runs episodes, each rank its share of them, and gives all of their trajectories to every rank."""
        # The global one stays as it is, and ranks must not draw alike.
        explore = torch.Generator().manual_seed(seed ^ self._ranks.rank)
        rl = self._run.config.rl

        def run(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
            share = self._ranks.share(specs)
            mine = collect(sim, self.policy, share, rl.temperature, explore, stopwatch, on_episode, rl.max_turns)
            if self._ranks.size == 1:
                return mine
            trees = self._ranks.together([groups_to_tree([(trajectory,)])[0] for trajectory in mine])
            return [trajectory for group in groups_from_tree(trees) for trajectory in group]

        return run

    def final_values(self, trajectories: Sequence[Trajectory]) -> Float[Tensor, "B"]:
        """See `rollout.batch.final_values`; each rank looks at its share."""
        rows, _ = self._ranks.rows(len(trajectories))
        return self._ranks.whole(final_values(self.policy, [trajectories[i] for i in rows]), len(trajectories))
