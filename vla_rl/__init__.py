"""Train vision-language-action policies by reinforcement learning, and run them on real robots."""

__version__ = "0.1.0"
