"""Which environment runs in which worker, and which worker on which device: pure functions.

Legend: B environments, W workers, G devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Every worker has one device and at least one environment.

    Example: 5 environments, 3 workers, 2 equal devices give `worker_of_env == (0, 1, 2, 1, 0)` and
    `device_of_worker == (0, 1, 0)`: loads of 3 and 2 environments.
    """

    worker_of_env: tuple[int, ...]
    device_of_worker: tuple[int, ...]

    def rows(self, worker: int) -> tuple[int, ...]:
        """The environments of a worker, ascending."""
        return tuple(env for env, owner in enumerate(self.worker_of_env) if owner == worker)

    def device_of_env(self, env: int) -> int:
        return self.device_of_worker[self.worker_of_env[env]]


def share_out(costs: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Bin of each cost, so that `load[i] <= share[i] + max(costs)` with `share[i] = sum(costs) * weights[i] / sum(weights)`.

    Each cost goes to the bin that is furthest below its share. Before it lands, the loads add up to less than the
    shares, so that bin is not above its own: it ends at most one cost above. Ties go to the first bin.
    """
    total, whole = math.fsum(costs), math.fsum(weights)
    excess = [-total * weight / whole for weight in weights]
    bins = []
    for cost in costs:
        chosen = min(range(len(excess)), key=excess.__getitem__)
        excess[chosen] += cost
        bins.append(chosen)
    return bins


def place(
    num_envs: int, num_workers: int, device_weights: Sequence[float] = (1.0,), costs: Sequence[float] | None = None
) -> Placement:
    """Spread `num_envs` environments over workers and devices.

    `device_weights` are relative speeds or free memory, `costs` the relative load of each environment (default: equal).
    With W workers, only the W heaviest-weighted devices can be used, since a worker has one device. Of those, no device
    gets more than its share by more than one environment's cost. Raises `ValueError` for counts that cannot be placed.
    """
    costs = [1.0] * num_envs if costs is None else list(costs)
    if not 1 <= num_workers <= num_envs:
        raise ValueError(f"{num_workers} workers cannot share {num_envs} environments: each needs at least one")
    if len(costs) != num_envs or not all(math.isfinite(cost) and cost > 0 for cost in costs):
        raise ValueError(f"costs must be {num_envs} positive numbers, not {costs}")
    if not device_weights or not all(math.isfinite(weight) and weight > 0 for weight in device_weights):
        raise ValueError(f"device weights must be positive numbers, not {list(device_weights)}")
    by_weight = sorted(range(len(device_weights)), key=lambda device: -device_weights[device])
    devices = sorted(by_weight[:num_workers])
    envs_on: dict[int, list[int]] = {device: [] for device in devices}
    for env, chosen in enumerate(share_out(costs, [device_weights[device] for device in devices])):
        envs_on[devices[chosen]].append(env)
    workers_on = _workers_on(envs_on, num_workers, costs)
    worker_of_env = [0] * num_envs
    for device, envs in envs_on.items():
        workers = [worker for worker, home in enumerate(workers_on) if home == device]
        for env, worker in _fill(envs, workers, costs).items():
            worker_of_env[env] = worker
    return Placement(tuple(worker_of_env), tuple(workers_on))


def _workers_on(envs_on: dict[int, list[int]], num_workers: int, costs: Sequence[float]) -> list[int]:
    """Device of each worker: the next worker goes where the load per worker is highest and it finds an environment."""
    load = {device: math.fsum(costs[env] for env in envs) for device, envs in envs_on.items()}
    count = dict.fromkeys(envs_on, 0)
    chosen = []
    for _ in range(num_workers):
        open_devices = [device for device, envs in envs_on.items() if count[device] < len(envs)]
        device = max(open_devices, key=lambda device: (count[device] == 0, load[device] / max(count[device], 1)))
        count[device] += 1
        chosen.append(device)
    return chosen


def _fill(envs: Sequence[int], workers: Sequence[int], costs: Sequence[float]) -> dict[int, int]:
    """Worker of each environment of one device: the least loaded one, so that none stays empty."""
    load = dict.fromkeys(workers, 0.0)
    owner = {}
    for env in envs:
        worker = min(workers, key=load.__getitem__)
        load[worker] += costs[env]
        owner[env] = worker
    return owner


def rebalance(worker_of: Sequence[int], seconds: Sequence[Sequence[float]], gain: float = 0.1) -> list[int]:
    """Worker of each row after moves that shorten the longest worker's time by at least a share `gain` of it each.

    `worker_of` says where the rows are now, `seconds[row][worker]` how long a row would take where. Rows leave the most
    loaded worker one by one, each time the one and to the place that levels the two best; what is balanced already stays
    as it is, since a row that moves must be loaded there.
    """
    owner = list(worker_of)
    if not owner:
        return owner
    load = [0.0] * len(seconds[0])
    for row, worker in enumerate(owner):
        load[worker] += seconds[row][worker]
    while True:
        longest = max(range(len(load)), key=load.__getitem__)
        options = [
            (max(load[longest] - seconds[row][longest], load[worker] + seconds[row][worker]), row, worker)
            for row in range(len(owner))
            if owner[row] == longest
            for worker in range(len(load))
            if worker != longest
        ]
        best, row, worker = min(options, default=(math.inf, 0, 0))
        if not best < (1 - gain) * load[longest]:
            return owner
        load[longest] -= seconds[row][longest]
        load[worker] += seconds[row][worker]
        owner[row] = worker
