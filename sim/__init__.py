"""Vectorised simulators behind one protocol, `VectorSim`."""

if __name__ != "vla_rl.sim":
    raise ImportError("import it as `vla_rl.sim`: `sim` alone is another distribution's name")

from vla_rl.sim.base import SimError, VectorSim
from vla_rl.sim.registry import make_sim
from vla_rl.types import EpisodeSpec, Observation, Turn

__all__ = ["EpisodeSpec", "Observation", "SimError", "Turn", "VectorSim", "make_sim"]
