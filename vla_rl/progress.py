"""The progress bar of long work."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from vla_rl.types import Trajectory


class Progress:
    """A bar with count, elapsed and remaining time, and a line of the latest figures; prints plain lines without a terminal."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._console = Console()
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._title, self._total, self._done = title, total, done
        self._task = self._bar.add_task(title, total=total, completed=done, note="")
        self._episodes = self._successes = 0
        self._note = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def episode(self, trajectory: Trajectory) -> None:
        """Count an episode of the current round."""
        self._episodes += 1
        self._successes += trajectory.success
        self._bar.update(self._task, note=f"{self._note}  [{self._episodes} episodes, {self._successes} successes]")

    def counted_episode(self, trajectory: Trajectory) -> None:
        """Advance by an episode, where episodes are what is counted."""
        self._done += 1
        self._successes += trajectory.success
        self._bar.update(self._task, advance=1, note=f"{self._successes} successes")
        if self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            self._say(f"{self._successes} successes")

    def advance(self, note: str, to: int | None = None) -> None:
        """One more, or as many as `to`, is done; `note` says what came of it."""
        self._done = self._done + 1 if to is None else to
        self._note, self._episodes, self._successes = note, 0, 0
        self._bar.update(self._task, completed=self._done, note=note)
        self._say(note)

    def _say(self, note: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._title} {self._done}/{self._total}: {note}", highlight=False, soft_wrap=True)
