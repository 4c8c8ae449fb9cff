"""Where the results of a benchmark go: the terminal, JSON, markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_rl.bench.spread import Target


def show(tables: Sequence[Table], record: dict[str, Any], json_path: str | None, as_markdown: bool = False) -> None:
    """Print the tables, and write `record` to `json_path`; "-" means standard output, and the tables then go to the other.

    Raises `OSError` where the file cannot be written.
    """
    stream = sys.stderr if json_path == "-" else sys.stdout
    for table in tables:
        if as_markdown:
            print(markdown(table), end="\n\n", file=stream)
        else:
            # Without a terminal nothing tells how wide the lines may be; these tables are wider than rich's guess.
            console = Console(file=stream)
            Console(file=stream, width=console.width if console.is_terminal else 150).print(table)
    if json_path == "-":
        print(json.dumps(record, indent=1))
    else:
        save(record, json_path)


def save(record: dict[str, Any], json_path: str | None) -> None:
    """Write JSON to a file, at once or not at all; nothing for None and "-". Raises `OSError`."""
    if json_path not in (None, "-"):
        path = Path(json_path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def markdown(table: Table) -> str:
    """The table as GitHub writes it, with its title above and its caption below."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    heading = [str(column.header) for column in table.columns]
    rule = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = ["| " + " | ".join(row) + " |" for row in (heading, rule, *zip(*columns, strict=True))]
    parts = [f"{table.title}:\n"] if table.title else []
    parts += rows + ([f"\n{table.caption}"] if table.caption else [])
    return "\n".join(parts)


def target_table(targets: Sequence[Target]) -> Table:
    """What was asked, what was found, and whether that is enough."""
    table = Table(title="targets")
    for heading in ("target", "wanted", "measured", "verdict"):
        table.add_column(heading, justify="left" if heading in ("target", "verdict") else "right")
    for target in targets:
        measured = "-" if target.value is None else f"{target.value.text()} {target.unit}".strip()
        note = f"; {target.note}" if target.note else ""
        wanted = f"{target.relation} {target.wanted:g} {target.unit}".strip()
        table.add_row(target.name, wanted, measured + note, target.verdict)
    return table
