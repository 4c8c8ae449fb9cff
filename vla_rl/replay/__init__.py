"""What off-policy learning remembers."""

from vla_rl.replay.buffer import ReplayBuffer

__all__ = ["ReplayBuffer"]
