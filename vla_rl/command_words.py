"""What commands take: a configuration, then overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file or a run directory, then section.key=value overrides."),
]


def split(words: list[str] | None) -> tuple[Path | None, list[str]]:
    """A path, if there is one among the words, and the overrides."""
    paths = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(paths) > 1:
        raise typer.BadParameter(f"one configuration at a time, not {' and '.join(paths)}; overrides are key=value")
    return Path(paths[0]) if paths else None, overrides
