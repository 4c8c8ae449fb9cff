"""Where results that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$VLA_RL_CACHE`, else `vla_rl` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("VLA_RL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "vla_rl"
