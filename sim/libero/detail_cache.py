"""A folder of arrays on disk, addressed by the content that they were computed from."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vla_rl.sim.cache import cache_folder

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def content_key(arrays: Mapping[str, np.ndarray], **parameters: object) -> str:
    """A digest of array contents, dtypes and shapes, and of the parameters' `repr`."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    digest.update(repr(sorted(parameters.items())).encode())
    return digest.hexdigest()[:32]


def cached(kind: str, key: str, build: Callable[[], Arrays], *, valid: Callable[[Arrays], bool]) -> Arrays:
    """The arrays stored under `kind/key`, built and stored where there are none.

    Processes may do this at once: each writes a file of its own and moves it into place, so a reader sees a whole entry or
    none. An entry that cannot be read or is not `valid` is rebuilt; a folder that cannot be written only costs the time to
    build again.
    """
    path = cache_folder() / kind / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if valid(arrays):
            return arrays
        logger.warning("cache entry %s is not what it should be; building it again", path)
    except FileNotFoundError:
        logger.debug("no cache entry %s yet; building it", path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("cache entry %s cannot be read (%s); building it again", path, error)
    arrays = build()
    try:
        _write(path, arrays)
    except OSError as error:
        logger.warning("cannot write the cache entry %s (%s); set VLA_RL_CACHE to a folder that can be written", path, error)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
