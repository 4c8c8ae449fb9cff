"""The report in a real browser without a network, driven over the W3C WebDriver protocol."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_rl.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
    # Whatever the page asks for by name goes nowhere.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no Chromium with chromedriver here; install it: sudo apt-get install chromium chromium-driver",
)


class Browser:
    """A headless Chromium behind chromedriver."""

    def __init__(self, port: int, profile: Path) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }  # fmt: skip
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        # No proxy of the environment may stand between the test and its driver.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, path: Path) -> None:
        self._call("POST", f"/session/{self._session}/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("POST", f"/session/{self._session}/execute/async", {"script": script, "args": list(arguments)})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self._call("POST", f"/session/{self._session}/se/log", {"type": kind})

    def close(self) -> None:
        self._call("DELETE", f"/session/{self._session}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                browser = Browser(port, tmp_path_factory.mktemp("profile"))
                break
            except urllib.error.HTTPError as error:
                raise RuntimeError(error.read().decode()) from error
            except urllib.error.URLError:
                assert time.monotonic() < deadline, "chromedriver does not answer"
                time.sleep(0.1)
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def opened(browser: Browser, finished_run: Path) -> Browser:
    browser.open(finished_run / "report.html")
    return browser


def test_curves_are_drawn_with_their_points(opened: Browser) -> None:
    curves = opened.run("""
        const done = arguments[arguments.length - 1];
        done([...document.querySelectorAll("path.curve")].map((path) => {
          const box = path.getBoundingClientRect();
          const drawn = (path.getAttribute("d").match(/[ML]/g) || []).length;
          return [path.id, Number(path.dataset.points), drawn, box.width, box.height];
        }));""")
    points = {identity: (claimed, drawn) for identity, claimed, drawn, _, _ in curves}
    assert points["curve-success-rl"] == (30, 30) and points["curve-success-rl-1"] == (4, 4)
    assert points["curve-sft-loss"] == (60, 60) and points["curve-rl-policy-loss"] == (29, 29)
    assert len(curves) >= 20 and all(claimed == drawn for claimed, drawn in points.values())
    assert all(width > 50 for _, _, _, width, _ in curves)
    height = {identity: height for identity, _, _, _, height in curves}
    assert height["curve-success-rl"] > 50


def test_a_video_plays(opened: Browser) -> None:
    played = opened.run("""
        const done = arguments[arguments.length - 1];
        const video = document.querySelector("video");
        video.scrollIntoView();
        const report = () => done([video.currentTime, video.error && video.error.message, video.videoWidth, video.duration]);
        setTimeout(report, 15000);
        video.addEventListener("timeupdate", () => { if (video.currentTime > 0.3) report(); });
        video.play().catch((error) => done([0, String(error), 0, 0]));""")
    position, error, width, length = played
    assert error is None and position > 0.3 and width == 136 and length == pytest.approx(1.6, abs=0.05)


def test_values_are_read_under_the_pointer_and_with_keys(opened: Browser) -> None:
    texts = opened.run("""
        const done = arguments[arguments.length - 1];
        const area = document.querySelector("#chart-success-rl .area"), tip = area.querySelector(".tip"), texts = [tip.hidden];
        const press = (key) => area.dispatchEvent(new KeyboardEvent("keydown", {key}));
        press("Home"); texts.push(tip.textContent);
        press("End"); texts.push(tip.textContent);
        const box = area.getBoundingClientRect();
        area.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 3, clientY: box.top + 5}));
        texts.push(tip.textContent);
        press("Escape"); texts.push(tip.hidden);
        done(texts);""")
    # The axis runs from 0 to 30, so a third of its width is iteration 10, where 33 of 80 episodes succeeded.
    assert texts[0] is True and texts[4] is True
    assert texts[1] == "iteration 0\nevaluations (greedy actions)  26.3%"
    assert texts[2].startswith("iteration 30\nrollouts") and "83.8%" in texts[2]
    assert texts[3].startswith("iteration 10\n") and texts[3].endswith("41.3%")


def test_no_horizontal_scrolling_and_labels_inside_their_cards(opened: Browser) -> None:
    outside = opened.run("""
        const done = arguments[arguments.length - 1];
        const loose = [...document.querySelectorAll(".ylabels span, .xlabels span")].filter((label) => {
          const card = label.closest(".chart").getBoundingClientRect(), box = label.getBoundingClientRect();
          return box.left < card.left || box.right > card.right;
        }).map((label) => label.textContent);
        done([document.documentElement.scrollWidth - window.innerWidth, loose]);""")
    assert outside[0] <= 0 and outside[1] == []


def test_nothing_is_requested_and_the_console_is_silent(browser: Browser, finished_run: Path, tmp_path: Path) -> None:
    browser.log("browser"), browser.log("performance")
    (tmp_path / "config.yaml").write_text("{}\n")
    for page in (finished_run / "report.html", write_report(tmp_path)):
        browser.open(page)
        assert browser.run("arguments[0](document.readyState)") == "complete"
    assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    requested = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in requested)
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
