"""`vla-rl data`: datasets described, converted, verified, measured, replayed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vla_rl.data.dataset import DatasetInfo, ReadOptions

app = typer.Typer(
    name="data",
    help="Datasets of demonstrations: describe, convert, verify, measure, replay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Place = Annotated[Path, typer.Argument(help="A dataset: a file or folder of LIBERO HDF5, LeRobot or RLDS.")]
Stated = Annotated[
    list[str] | None,
    typer.Option(
        "--stated",
        metavar="NAME=VALUE",
        help="What the dataset does not say: gripper=1_opens_0_closes, frames=upright, orientation=quaternion_xyzw, fps=10.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many episodes (HDF5: of each file).")]


def _options(stated: list[str] | None, cameras: list[str] | None = None, limit: int | None = None) -> ReadOptions:
    from vla_rl.data.dataset import ReadOptions

    return ReadOptions(cameras=cameras, limit=limit, stated=_assignments(stated))


def _assignments(words: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"{word!r} is not NAME=VALUE, such as gripper=1_opens_0_closes")
        try:
            found[name] = float(value) if name == "fps" else value
        except ValueError:
            raise typer.BadParameter(f"fps={value} is no number") from None
    return found


def _print(*lines: str) -> None:
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def info(
    path: Place, stated: Stated = None, as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False
) -> None:
    """What a dataset holds, and which conventions it states."""
    from vla_rl.data.formats import dataset_info

    found = dataset_info(path, _options(stated))
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(*_describe(found))


def _describe(found: DatasetInfo) -> list[str]:
    from vla_rl.data.convention import Convention

    convention: Convention = found.convention
    outcome = "success is not recorded" if found.successes is None else f"{found.successes} successes"
    lines = [
        f"{found.path}: {found.format}, {found.size_bytes / 1e6:.1f} MB",
        f"  {found.episodes} episodes ({outcome}), {found.steps} steps, "
        f"{found.steps / convention.fps:.0f} s at {convention.fps:g} Hz",
        "  cameras: " + (", ".join(f"{name} {size[0]}x{size[1]}" for name, size in found.cameras.items()) or "none"),
    ]
    for name, value in convention.to_dict().items():
        lines.append(f"  {name}: {value}" + (" (assumed: the dataset does not say)" if name in found.assumed else ""))
    lines += [f"  {remark}" for remark in found.remarks]
    return lines + [f"  {count:5d} x {instruction}" for instruction, count in found.instructions.items()]


@app.command()
def convert(
    source: Place,
    target: Annotated[Path, typer.Argument(help="The new dataset; must not exist.")],
    to: Annotated[str, typer.Option(help="hdf5, lerobot or rlds.")],
    stated: Stated = None,
    store: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Conventions of the new dataset, instead of the format's usual ones."),
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras (repeat); default: all.")] = None,
    no_frames: Annotated[bool, typer.Option(help="No frames at all.")] = False,
    limit: Limit = None,
    frames: Annotated[str, typer.Option(help="LeRobot: video (H.264, lossy) or png (lossless).")] = "video",
    quality: Annotated[int | None, typer.Option(help="H.264 rate factor (default 18) or JPEG percent (default 95).")] = None,
    compression: Annotated[str | None, typer.Option(help="HDF5 frames: gzip or lzf.")] = None,
) -> None:
    """Write a dataset in another format; actions keep their bits."""
    from vla_rl.data.convention import Convention
    from vla_rl.data.dataset import WriteOptions
    from vla_rl.data.formats import convert as convert_dataset
    from vla_rl.data.formats import usual_convention

    convention = Convention.from_dict(usual_convention(to).to_dict() | _assignments(store))
    write = WriteOptions(convention=convention, frames=frames, quality=quality, compression=compression)
    read = _options(stated, [] if no_frames else camera, limit)
    done = convert_dataset(source, target, to, read, write)
    _print(f"{done.target}: {done.episodes} episodes, {done.steps} steps, {convention}")
    if done.assumed:
        _print(f"assumed of {source}, which does not say: {', '.join(done.assumed)} (change with --stated)")
    if done.left_out:
        _print(f"left out, for {to} has no place for them: {', '.join(done.left_out)}")
    _print(f"actions rounded {done.rounded}" if done.rounded else "actions are the same to the bit")


@app.command()
def verify(
    path: Place,
    stated: Stated = None,
    python: Annotated[str, typer.Option(help="An interpreter with robomimic, lerobot or tensorflow_datasets.")] = sys.executable,
) -> None:
    """Open a dataset with the library that others use where it is installed, else check its schema; exit code 1 if wrong."""
    from vla_rl.data.verify import verify as verify_dataset

    found = verify_dataset(path, python, _options(stated))
    _print(f"{path}: {found.format}, {found.episodes} episodes and {found.steps} steps read, schema checked")
    if found.consumer and not found.findings:
        _print(f"opened with {found.consumer}: it reads the same episodes, steps and actions")
    if found.note:
        _print(f"only the schema was checked: {found.note}")
    for finding in found.findings:
        _print(f"wrong: {finding}")
    raise typer.Exit(1 if found.findings else 0)


@app.command()
def report(
    path: Place,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; default: PATH with -report.html.")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Actions of a chunk, to measure the jumps between chunks.")] = None,
    stated: Stated = None,
    limit: Limit = None,
) -> None:
    """Smoothness, length and variety of the episodes, as a page and as JSON."""
    from vla_rl.report.dataset_page import write_dataset_report

    page = output or path.with_name(f"{path.resolve().name}-report.html")
    written, numbers = write_dataset_report(path, page, _options(stated, limit=limit), chunk)
    _print(f"report: {written}", f"numbers: {numbers}")


@app.command()
def replay(
    path: Place,
    limit: Limit = None,
    least: Annotated[float, typer.Option(min=0, max=1, help="Exit with code 1 if a smaller share succeeds.")] = 0.0,
) -> None:
    """Execute the stored actions again from the stored initial states; reports the share that succeeds again."""
    from vla_rl.collect import replay as replay_dataset

    found = replay_dataset(path, limit)
    _print(f"{found.successes} of {found.episodes} episodes succeed again ({found.successes / found.episodes:.1%})")
    if found.compared:
        _print(f"{found.exact} of {found.compared} pass through the stored states to the bit")
    for failure in found.failed:
        _print(f"failed: {failure}")
    raise typer.Exit(1 if found.successes < least * found.episodes else 0)
