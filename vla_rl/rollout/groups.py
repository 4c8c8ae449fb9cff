"""Groups: trajectories that share task and initial state, and dynamic sampling, which looks for groups to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vla_rl.types import EpisodeSpec, Trajectory

Group = tuple[Trajectory, ...]


@dataclass(frozen=True)
class Gathered:
    """What sampling for one update brought."""

    groups: list[Group]
    """To learn from now."""
    surplus: list[Group]
    """Informative, too, and kept for the next update."""
    drawn: list[Group]
    """All that were run for it, informative or not."""
    attempts: int

    @property
    def learned(self) -> list[Trajectory]:
        """The episodes to learn from now, group after group."""
        return [trajectory for group in self.groups for trajectory in group]

    @property
    def sampled(self) -> list[Trajectory]:
        """All episodes that were run."""
        return [trajectory for group in self.drawn for trajectory in group]

    @property
    def mixed(self) -> float:
        """Share of the drawn groups that have both successes and failures."""
        return sum(0 < success_rate(group) < 1 for group in self.drawn) / max(len(self.drawn), 1)

    def why_none(self) -> str:
        """One line that says why there is no group to learn from."""
        rate = success_rate(tuple(self.sampled))
        hint = (
            "the start is too weak for objectives that compare siblings: give it more demonstrations or steps"
            if rate < 0.5
            else "there is little left to learn here: choose harder tasks"
        )
        return (
            f"in {self.attempts} attempts ({len(self.sampled)} episodes, {rate:.0%} successes) no group had a share of successes "
            f"between rl.success_low and rl.success_high; {hint}"
        )


def success_rate(group: Group) -> float:
    """The share of successes; of at least one trajectory."""
    return sum(trajectory.success for trajectory in group) / len(group)


def gather(
    draw: Callable[[int], Sequence[EpisodeSpec]],
    run: Callable[[Sequence[EpisodeSpec]], Sequence[Trajectory]],
    waiting: Sequence[Group],
    count: int,
    *,
    size: int,
    attempts: int,
    at_least: int,
    low: float,
    high: float,
) -> Gathered:
    """Groups of `size` episodes for one update: `count` of them if it can be done.

    `draw(n)` gives n initial states, `run` the trajectories of episodes. Without `attempts` all groups count and are drawn
    once. Otherwise (dynamic sampling, DAPO arXiv 2503.14476, SimpleVLA-RL arXiv 2509.09674) only those with a share of
    successes in [`low`, `high`]: first the `waiting` ones, then new ones, at most so many times; a draw has as many groups as
    are missing, but `at_least` so many, lest environments idle. More than `count` are kept as surplus, fewer are what there is.
    No draw goes beyond what this update and the next one take, so that no surplus is older than one update.
    """
    groups, drawn, done = list(waiting), list[Group](), 0
    for _ in range(max(attempts, 1)):
        missing = count - len(groups)
        if missing <= 0:
            break
        specs = draw(max(missing, min(at_least, missing + count)) if attempts else missing)
        trajectories = run([spec for spec in specs for _ in range(size)])
        fresh = [tuple(trajectories[i : i + size]) for i in range(0, len(trajectories), size)]
        groups += [group for group in fresh if not attempts or low <= success_rate(group) <= high]
        drawn += fresh
        done += 1
    return Gathered(groups[:count], groups[count:], drawn, done)


def groups_to_tree(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Groups as plain values and arrays, for a checkpoint."""
    return [
        [
            {f.name: getattr(t, f.name) for f in fields(t)}
            | {"spec": t.spec.to_dict(), "images": dict(t.images), "final_images": dict(t.final_images)}
            for t in group
        ]
        for group in groups
    ]


def groups_from_tree(tree: Sequence[Sequence[dict[str, Any]]]) -> list[Group]:
    """What `groups_to_tree` made."""
    return [tuple(Trajectory(**record | {"spec": EpisodeSpec.from_dict(record["spec"])}) for record in group) for group in tree]
