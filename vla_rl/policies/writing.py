"""Folders that are there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vla_rl.policies.base import PolicyError


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """An empty folder to fill, which is called `place` once that is done.

    Raises `PolicyError` where the disk does not take it, and leaves nothing of it behind.
    """
    writing = place.with_name(f".{place.name}.writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        yield writing
        writing.rename(place)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise PolicyError(f"{place} was not written: {reason}; free some space, then do it again") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
