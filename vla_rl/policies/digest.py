"""Names for the content of weights and of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, in hexadecimal, over names, types, shapes and bytes; the order of the tensors does not matter."""
    lines = []
    for name, tensor in tensors:
        content = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content.data).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256, in hexadecimal. Raises `OSError` where the file cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
