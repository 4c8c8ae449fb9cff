"""`vla-rl sim`: interpreters of simulators that cannot share ours, and their initial states."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="sim",
    help="Simulators with an interpreter of their own: install, remove, look for initial states.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Argument(help="robotwin, or libero.")]


@app.command()
def install(name: Name) -> None:
    """Make the interpreter of a simulator, or complete it; it lies in one folder, and nothing of the system changes."""
    from vla_rl.progress import Progress
    from vla_rl.sim.environments import environment_folder
    from vla_rl.sim.install import install as make
    from vla_rl.sim.install import num_steps

    begin = time.monotonic()
    with Progress(f"install {name}", num_steps(name)) as progress:
        made = make(name, progress.advance)
        progress.advance("done", to=num_steps(name))
    console = Console(highlight=False)
    console.print(f"{name}: {made.python} ({time.monotonic() - begin:.0f} s)", soft_wrap=True)
    console.print(f"to remove it, delete {environment_folder(name)} or run: vla-rl sim remove {name}", soft_wrap=True)


@app.command()
def remove(name: Name) -> None:
    """Delete the interpreter of a simulator."""
    from vla_rl.sim.environments import environment_folder
    from vla_rl.sim.install import recipe_of
    from vla_rl.sim.install import remove as delete

    recipe_of(name)
    done = "removed" if delete(name) else "there is no"
    Console(highlight=False).print(f"{done} {environment_folder(name)}", soft_wrap=True)


@app.command()
def seeds(
    name: Annotated[str, typer.Argument(help="robotwin")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="task_ids=[45] count=100 profile=lite; by default the mesh-free tasks."),
    ] = None,
) -> None:
    """Look for initial states that the scripted expert solves, and keep them; a stopped search goes on where it was."""
    from vla_rl.config import ConfigError
    from vla_rl.config_files import load_section
    from vla_rl.sim.robotwin.seed_search import SeedSearch, search

    if name != "robotwin":
        raise ConfigError(f"initial states of {name} ship with it; only RoboTwin's are looked for")
    for task, count in search(load_section(SeedSearch, None, words or [])):
        Console(highlight=False).print(f"{task.name}: {count} initial states", soft_wrap=True)
