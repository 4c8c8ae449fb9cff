"""Whether others can read a dataset: their own library opens it where it is installed, else its schema is checked.

Either way all of it is read by us first, frames included, and what the library read must be the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.data import consumers
from vla_rl.data.convention import actions_to
from vla_rl.data.dataset import ReadOptions
from vla_rl.data.demonstration import DatasetError
from vla_rl.data.formats import FORMATS, dataset_info, format_of, read_episodes

INSTALL = {
    "hdf5": "pip install --no-deps robomimic tqdm psutil termcolor tensorboardX, beside torch and h5py",
    "lerobot": "pip install 'lerobot[dataset]' under Python 3.12 or newer",
    "rlds": "pip install tensorflow-cpu tensorflow-datasets",
}


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was found."""

    format: str
    episodes: int
    steps: int
    consumer: str
    """The library that opened the dataset; empty where it was only checked by us."""
    note: str
    """Why no library opened it, and how to install it."""
    findings: tuple[str, ...]
    """What is wrong, in words."""


def verify(path: Path, python: str = sys.executable, options: ReadOptions | None = None) -> Verification:
    """Check a dataset, with the consumer that the interpreter `python` has. Raises `DatasetError` where it is damaged."""
    path, options = Path(path), options or ReadOptions()
    kind = format_of(path)
    convention = dataset_info(path, options).convention
    digest, episodes, steps = hashlib.sha256(), 0, 0
    for _, demonstration in read_episodes(path, options):
        digest.update(actions_to(convention, demonstration.actions).astype("<f4").tobytes())
        episodes, steps = episodes + 1, steps + len(demonstration)
    findings = FORMATS[kind].check(path)
    answer = ask_consumer(kind, path, python)
    if "error" in answer:
        findings.append(f"{consumers.CONSUMERS[kind]} cannot read it: {answer['error']}")
    elif "missing" not in answer:
        ours = {"episodes": episodes, "steps": steps, "actions": digest.hexdigest()}
        findings += [
            f"{answer['consumer']} reads other {name} than we do: {answer[name]}, not {value}"
            for name, value in ours.items()
            if answer[name] != value
        ]
    note = f"{consumers.CONSUMERS[kind]} is not installed here ({INSTALL[kind]})" if "missing" in answer else ""
    return Verification(kind, episodes, steps, str(answer.get("consumer", "")), note, tuple(findings))


def ask_consumer(kind: str, path: Path, python: str) -> dict[str, Any]:
    """What `consumers.py` answers under an interpreter. Raises `DatasetError` where that interpreter does not run."""
    command = [python, str(Path(consumers.__file__).resolve()), kind, str(path.resolve())]
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DatasetError(f"the interpreter {python} cannot be started ({error.strerror})") from error
    try:
        return dict(json.loads(result.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"it ended with code {result.returncode}: {last}"}
