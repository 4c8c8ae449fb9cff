"""Where results go."""

import json
from pathlib import Path

import pytest
from rich.table import Table

from vla_rl.bench.output import markdown, show, target_table
from vla_rl.bench.spread import Spread, Target


@pytest.fixture
def table() -> Table:
    made = Table(title="speeds", caption="on a busy machine")
    made.add_column("system")
    made.add_column("rate", justify="right")
    made.add_row("ours", "12.3")
    made.add_row("theirs", "4.5")
    return made


def test_markdown(table: Table) -> None:
    assert markdown(table).splitlines() == [
        "speeds:",
        "",
        "| system | rate |",
        "| --- | ---: |",
        "| ours | 12.3 |",
        "| theirs | 4.5 |",
        "",
        "on a busy machine",
    ]


def test_json_goes_to_a_file_or_to_standard_output(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show([table], {"a": 1}, str(tmp_path / "result.json"))
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert "theirs" in capsys.readouterr().out
    show([table], {"a": 1}, "-")
    streams = capsys.readouterr()
    assert json.loads(streams.out) == {"a": 1} and "theirs" in streams.err


def test_targets_show_what_was_asked_and_found() -> None:
    text = markdown(target_table([Target("speed", ">=", 25, Spread.of([26.0]), "x"), Target("memory", "<", 10, None, "MiB")]))
    assert "| speed | >= 25 x | 26.0 x | met |" in text
    assert "| memory | < 10 MiB | - | not measured |" in text
