"""Weights in safetensors files: one, or several with an index, read tensor by tensor and written shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.policies.base import PolicyError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_READABLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFiles:
    """The tensors of a folder by name. The files are memory-mapped; nothing is read before it is asked for.

    Raises `PolicyError`, one line, for files that are missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = {}
        for file in _files(folder):
            try:
                self._open[file] = safe_open(str(folder / file), framework="pt")
            except (SafetensorError, OSError) as error:
                reason = " ".join(str(error).split())
                raise PolicyError(f"{folder / file} cannot be read (truncated?): {reason}; download it again") from None
        self._where = {name: file for file, tensors in self._open.items() for name in tensors.keys()}  # noqa: SIM118

    @property
    def names(self) -> list[str]:
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._where[name]].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors calls it, such as BF16."""
        return str(self._open[self._where[name]].get_slice(name).get_dtype())

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `PolicyError` for the first tensor that is missing, of another shape, or of a type that is no plain float."""
        for name, shape in wanted.items():
            if name not in self:
                raise PolicyError(
                    f"{self.folder} has no tensor {name}: its config.json is of another network, or a file is incomplete"
                )
            if self.shape(name) != shape:
                raise PolicyError(
                    f"{self.folder}: tensor {name} is {list(self.shape(name))} and should be {list(shape)} by its config.json"
                )
            if self.dtype(name) not in _READABLE:
                raise PolicyError(
                    f"{self.folder}: tensor {name} is {self.dtype(name)}; only {', '.join(_READABLE)} are read, "
                    "so give a checkpoint that is not quantised"
                )

    def get(self, name: str, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in memory of its own."""
        tensor = self._open[self._where[name]].get_tensor(name)
        target = tensor.to(device=device, dtype=dtype)
        # A view into the mapped file would change with it.
        return target.clone() if target.data_ptr() == tensor.data_ptr() else target


def _files(folder: Path) -> list[str]:
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).is_file():
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        mend = "; convert its pytorch_model.bin with safetensors first" if pickled else ""
        raise PolicyError(f"{folder} has neither {SINGLE} nor {INDEX}{mend}")
    try:
        record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted({str(file) for file in record["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        raise PolicyError(f"{folder / INDEX} is no index of safetensors files; download it again") from None
    missing = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise PolicyError(f"{folder} lacks {len(missing)} of {len(files)} shards, first {missing[0]}; download it again")
    return files


def write_shards(folder: Path, sizes: Mapping[str, int], tensor: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors of `sizes` (bytes by name), at most `shard_bytes` a file; `tensor` is asked for one shard at a time."""
    shards = list(_split(sizes, shard_bytes))
    files = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        save_file(
            {name: tensor(name).detach().cpu().contiguous() for name in names}, str(folder / file), metadata={"format": "pt"}
        )
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(sizes: Mapping[str, int], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names
