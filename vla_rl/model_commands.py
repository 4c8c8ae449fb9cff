"""`vla-rl model`: checkpoints described, converted, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vla_rl.policies.openvla import CheckpointOptions
    from vla_rl.policies.openvla.inspection import ModelInfo

app = typer.Typer(
    name="model",
    help="Checkpoints, those of OpenVLA and OpenVLA-OFT among them: describe, convert, verify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Place = Annotated[str, typer.Argument(help="A run, a checkpoint's folder, or a hub repository OWNER/NAME.")]
Camera = Annotated[list[str] | None, typer.Option(help="Cameras that an original checkpoint sees, in order (repeat).")]
UnnormKey = Annotated[str | None, typer.Option(help="Data set whose statistics scale the actions.")]
Decoding = Annotated[Literal["parallel", "autoregressive"] | None, typer.Option(help="By default told from the files.")]
Attention = Annotated[Literal["full", "causal"] | None, typer.Option(help="Of parallel decoding; default: full.")]
ChunkLength = Annotated[int | None, typer.Option(min=1, help="Actions that parallel decoding gives.")]
Crop = Annotated[bool, typer.Option(help="Whether images are cropped to their centre.")]


def _options(
    camera: list[str] | None,
    unnorm_key: str | None,
    decoding: Literal["parallel", "autoregressive"] | None,
    attention: Literal["full", "causal"] | None,
    chunk_length: int | None,
    crop: bool,
) -> CheckpointOptions:
    from vla_rl.policies.openvla import CheckpointOptions

    return CheckpointOptions(
        cameras=tuple(camera) if camera else None,
        unnorm_key=unnorm_key,
        decoding=decoding,
        attention=attention,
        chunk_length=chunk_length,
        centre_crop=crop,
    )


def _print(*lines: str) -> None:
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def info(
    path: Place,
    camera: Camera = None,
    unnorm_key: UnnormKey = None,
    decoding: Decoding = None,
    attention: Attention = None,
    chunk_length: ChunkLength = None,
    crop: Crop = True,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """What a checkpoint is, without loading its weights."""
    from vla_rl.policies.openvla.inspection import describe

    found = describe(path, _options(camera, unnorm_key, decoding, attention, chunk_length, crop))
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(*_lines(found))


def _lines(found: ModelInfo) -> list[str]:
    config, language = found.config, found.config.language
    total = sum(found.parameters.values())
    parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.parameters.items())
    encoders = " + ".join(f"{f.kind} {f.width} x {f.layers}" for f in config.featurizers)
    decoding = "regression (L1)" if config.head == "l1" else f"{config.decoding}, {config.attention} attention"
    lines = [
        f"{found.folder}: {'original format' if found.original else 'our format'}, version {found.version}",
        f"  {total / 1e6:.1f} M parameters: {parts}",
        "  files: " + ", ".join(f"{size / 1e9:.2f} GB {kind}" for kind, size in found.stored.items()),
        f"  images: {', '.join(config.cameras)}, {config.image_size} px, {config.image_tokens} tokens each, from {encoders}",
        f"  language: Llama {language.width} x {language.layers}, {config.max_prompt_tokens} prompt tokens at most",
        f"  proprioception: {f'{config.proprio_dim} numbers' if config.proprio_dim else 'none'}",
        f"  actions: {config.chunk_length} a turn, {config.action_dim} dimensions; {decoding}",
    ]
    if found.norm_stats:
        lines.append(f"  actions scaled by {found.unnorm_key}, of norm_stats of: {', '.join(found.norm_stats)}")
    if not found.learns_by_tokens:
        lines.append("  for inference only: a regression head has no log-probs to learn by, and its lm_head is untrained")
    return lines


@app.command()
def convert(
    source: Place,
    target: Annotated[Path, typer.Argument(help="The new folder; must not exist.")],
    camera: Camera = None,
    unnorm_key: UnnormKey = None,
    decoding: Decoding = None,
    attention: Attention = None,
    chunk_length: ChunkLength = None,
    crop: Crop = True,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Of the new weights.")] = None,
) -> None:
    """Write a checkpoint anew, in its own format: with another type of number, and with what its files did not say."""
    import torch

    from vla_rl.policies import PolicyError, load_policy
    from vla_rl.policies.writing import new_folder

    if target.exists():
        raise PolicyError(f"{target} exists already; give a new folder")
    options = _options(camera, unnorm_key, decoding, attention, chunk_length, crop)
    policy = load_policy(source, "cpu", options, getattr(torch, dtype) if dtype else None)
    with new_folder(target) as folder:
        policy.save(folder)
    _print(f"checkpoint: {target}")


@app.command()
def verify(
    path: Place,
    camera: Camera = None,
    unnorm_key: UnnormKey = None,
    decoding: Decoding = None,
    attention: Attention = None,
    chunk_length: ChunkLength = None,
    crop: Crop = True,
) -> None:
    """Read every tensor, then act on a random picture; exit code 1 if something is wrong."""
    from vla_rl.policies.openvla.inspection import verify as verify_model

    findings = verify_model(path, _options(camera, unnorm_key, decoding, attention, chunk_length, crop))
    for finding in findings:
        _print(f"wrong: {finding}")
    if findings:
        raise typer.Exit(1)
    _print(f"{path}: complete, finite, and it acts")
