import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_sets import demonstration, header, write_small

from vla_rl.data import DatasetError
from vla_rl.data.libero_hdf5 import write_demonstrations
from vla_rl.data.quality_report import quality_report
from vla_rl.report.dataset_page import write_dataset_report

VOID = {"meta", "link", "path", "br"}


class Nesting(HTMLParser):
    """Every opened element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    write_small(tmp_path / "demos")
    page, numbers = write_dataset_report(tmp_path / "demos", tmp_path / "out" / "report.html", chunk_length=4)
    text = page.read_text()
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    assert parser.seen.count("figure") == 10 + 2, "ten measures and two tasks"
    assert "2 of 3 episodes" in text and "successes" in text and "failures" in text
    # Nothing is loaded from elsewhere.
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    found = json.loads(numbers.read_text())
    assert found["dataset"]["successes"] == 2 and found["sparc_cutoff_hz"] == 5
    assert found["measures"]["duration"]["median"] == pytest.approx(0.6)
    assert found["tasks"]["push it"]["episodes"] == 2
    assert found["tasks"]["lift it"]["spread"]["pairwise_distance"] is None
    assert found["tasks"]["push it"]["spread"]["pairwise_distance"] > 0
    assert {episode["instruction"] for episode in found["episodes"]} == {"lift it", "push it"}


def test_episodes_that_are_all_alike_are_found(tmp_path: Path) -> None:
    one = demonstration()
    away = replace(one, proprio=one.proprio + np.array([0, 0.02, 0, 0, 0, 0, 0, 0], np.float32))
    moved = replace(away, actions=-away.actions)
    write_demonstrations(tmp_path / "push_it_demo.hdf5", header("push_it"), [one, one, moved])
    spread = quality_report(tmp_path).tasks["push it"]["spread"]
    # Pairs: 0, 2 cm, 2 cm apart. The nearest of each: 0, 0, 2 cm, so the median is 0.
    assert spread["pairwise_distance"] == pytest.approx(0.04 / 3, rel=1e-4)
    assert spread["nearest_distance"] == pytest.approx(0, abs=1e-9)
    assert spread["repeated"] == 1
    # Starts at 0, 0 and 2 cm: variance (0.02)^2 * 2 / 9.
    assert spread["start_deviation"] == pytest.approx(0.02 * 2**0.5 / 3, rel=1e-4)


def test_text_of_a_dataset_is_not_markup(tmp_path: Path) -> None:
    odd = replace(demonstration(), instruction="<script>alert(1)</script>")
    write_demonstrations(tmp_path / "odd_demo.hdf5", header("odd"), [odd])
    page, _ = write_dataset_report(tmp_path, tmp_path / "report.html")
    assert "<script>alert" not in page.read_text()


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    write_small(tmp_path / "demos")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot write the report"):
        write_dataset_report(tmp_path / "demos", tmp_path / "file" / "report.html")
