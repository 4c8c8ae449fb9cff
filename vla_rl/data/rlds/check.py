"""Checks what TFDS's own reader relies on, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.data.demonstration import DatasetError
from vla_rl.data.rlds import layout
from vla_rl.data.rlds.records import Feature, decode_example, read_records

NEEDED = ("steps/action", "steps/is_first", "steps/is_last", "steps/is_terminal", "steps/language_instruction")


def check_rlds(path: Path) -> list[str]:
    """Findings in words; checksums are checked for every record."""
    folder = layout.version_folder(path)
    if folder is None:
        raise DatasetError(f"{path} holds no RLDS dataset (no features.json)")
    info, leaves = layout.read_description(folder)
    findings = [f"features.json lacks {name}" for name in NEEDED if name not in leaves]
    if info.get("version") != folder.name:
        findings.append(f"dataset_info.json says version {info.get('version')}, its folder is called {folder.name}")
    size = 0
    for file, length in layout.shards(folder, info):
        count = 0
        for data in read_records(file):
            size += len(data) + 16
            findings += [f"{file.name}, record {count}: {finding}" for finding in _check_example(data, leaves)]
            count += 1
        if count != length:
            findings.append(f"{file.name} holds {count} episodes, dataset_info.json says {length}")
    stated = sum(int(split.get("numBytes", 0)) for split in info["splits"])
    # OpenVLA's own sets count without the 16 bytes around each record.
    if stated > size:
        findings.append(f"dataset_info.json says {stated} bytes, there are {size}")
    return findings


def _check_example(data: bytes, leaves: dict[str, dict[str, Any]]) -> list[str]:
    try:
        example = decode_example(data)
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        return [f"it is no tf.train.Example ({error!r})"]
    if set(example) != set(leaves):
        return [f"it holds other features than features.json: {', '.join(sorted(set(example) ^ set(leaves)))}"]
    steps = len(example["steps/is_last"])
    return [finding for name, leaf in leaves.items() if (finding := _check_feature(name, leaf, example[name], steps))]


def _check_feature(name: str, leaf: dict[str, Any], value: Feature, steps: int) -> str:
    rows = steps if name.startswith("steps/") else 1
    if "tensor" in leaf:
        for size in layout.shape_of(leaf):
            rows *= size
        wanted = "f" if leaf["tensor"]["dtype"].startswith("float") else "i"
        if isinstance(value, list) or value.dtype.kind != wanted:
            return f"{name} is not {leaf['tensor']['dtype']}"
    elif not isinstance(value, list):
        return f"{name} is not text or a picture"
    return f"{name} has {len(value)} values, expected {rows}" if len(value) != rows else ""
