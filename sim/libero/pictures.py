"""Which pictures LIBERO's cameras can be asked for."""

from __future__ import annotations

from vla_rl.sim.base import SimError

SAMPLES = {"exact": (1, 2, 4, 8), "fast": (1, 4, 9, 16)}
"""Render quality -> samples a pixel that it can have; 1: no antialiasing.

Exact pictures have MSAA, and 4 is MuJoCo's default, which LIBERO keeps. Fast ones are drawn larger and averaged, which
costs less than MSAA on software OpenGL.
"""
RENDER_QUALITIES = tuple(SAMPLES)


def check_pictures(render_quality: str, antialiasing: int) -> None:
    """Raises `SimError` for a render quality that does not exist, or samples a pixel that it cannot have."""
    if render_quality not in SAMPLES:
        raise SimError(f"LIBERO has no render_quality {render_quality!r}; choose one of: {', '.join(RENDER_QUALITIES)}")
    if antialiasing not in SAMPLES[render_quality]:
        known = ", ".join(map(str, SAMPLES[render_quality]))
        raise SimError(
            f"antialiasing={antialiasing!r} is not possible with render_quality={render_quality}; choose one of: {known}"
        )
