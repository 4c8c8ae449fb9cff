"""Run the jobs of a study, each as a process of its own, and keep the page of the study up to date."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vla_rl.config import Config, ConfigError
from vla_rl.policies.base import PolicyError
from vla_rl.report.run_files import read_run
from vla_rl.report.sections import rate_of
from vla_rl.report.study_page import read_study, write_study_page
from vla_rl.report.study_results import StudyRun, failure_line
from vla_rl.run import RunError, changed_keys, has_results, lock_directory, write_atomically
from vla_rl.sim.base import SimError
from vla_rl.study.definition import Job, Study
from vla_rl.trainers.pipeline import check

WORKER = (sys.executable, "-m", "vla_rl.cli")
"""What takes `sft --evaluate CONFIG` for a shared start and `train CONFIG` for a run."""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 20.0
"""How long an interrupted run may take to end by itself."""
DECIDES_THE_END = (
    "run.max_minutes",
    "run.max_episodes",
    "rl.iterations",
    "evaluation.episodes",
    "evaluation.samples",
    "evaluation.sample_states",
)
"""What a run may set anew while it is under way; a finished one has come to its end by them."""
_PR_SET_PDEATHSIG = 1


def run_study(study: Study, worker: Sequence[str] = WORKER, check: Callable[[Config], object] = check) -> list[str]:
    """Run what is not finished yet, `at_once` jobs at a time; returns the names of the jobs that failed.

    Finished runs are skipped and interrupted ones continue where they were. Raises `RunError` where the folder of the study
    is in use or holds runs of other settings, and what `check` raises of a variant, by default one that no run could begin with.
    """
    _check_variants(study, check)
    busy = f"another process runs the study in {study.directory}; wait for it or give this one a name"
    with lock_directory(study.directory, "folder of the study", "set root", busy):
        _check_settings(study)
        write_atomically(study.directory / "study.yaml", study.definition)
        schedule = _Schedule(study, worker)
        try:
            schedule.run()
        finally:
            schedule.stop()
            write_comparison(study)
        return schedule.failed


def write_comparison(study: Study) -> Path:
    """Write the page of the study from what is there; returns its path. Raises `RunError` where there is nothing yet."""
    if not study.directory.is_dir():
        raise RunError(f"there is nothing in {study.directory} yet; run the study first")
    runs = [
        StudyRun(
            variant=job.variant,
            seed=job.config.run.seed,
            directory=job.directory,
            rounds=job.config.rl.iterations,
            max_minutes=job.config.run.max_minutes,
            max_episodes=job.config.run.max_episodes,
            log=job.log,
        )
        for job in study.jobs
        if job.variant is not None
    ]
    path = study.directory / "study.html"
    return write_study_page(path, study.file.name, study.definition, read_study(runs, study.variants))


class _Schedule:
    """The jobs that wait, run and have failed."""

    def __init__(self, study: Study, worker: Sequence[str]) -> None:
        self.failed: list[str] = []
        self._study = study
        self._worker = worker
        self._waiting = [job for job in study.jobs if not job.is_finished]
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
        self._console = Console()
        needed = {job.start.name for job in self._waiting if job.start is not None}
        self._waiting = [job for job in self._waiting if job.variant is not None or job.name in needed]
        self._say(f"{len(study.jobs) - len(self._waiting)} of {len(study.jobs)} jobs need no work")

    def run(self) -> None:
        while self._waiting or self._running:
            for job in self._ready():
                self._begin(job)
            time.sleep(POLL_SECONDS)
            for job, process, since in list(self._running.values()):
                if process.poll() is not None:
                    del self._running[job.name]
                    self._end(job, process.returncode, time.monotonic() - since)

    def stop(self) -> None:
        """Interrupt what still runs, and end it where it does not listen."""
        for _, process, _ in self._running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_SECONDS
        for _, process, _ in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _ready(self) -> list[Job]:
        """The next jobs for the free places; those whose start failed are given up."""
        for job in [job for job in self._waiting if job.start is not None and job.start.name in self.failed]:
            self._waiting.remove(job)
            self.failed.append(job.name)
            self._say(f"{job.name}: not run, as {job.start.name if job.start else ''} failed")
        free = self._study.file.at_once - len(self._running)
        return [job for job in self._waiting if job.start is None or job.start.is_finished][: max(0, free)]

    def _begin(self, job: Job) -> None:
        self._waiting.remove(job)
        if job.start is not None:
            share_evaluation(job, job.start)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        settings = job.log.with_suffix(".yaml")
        write_atomically(settings, job.config.to_yaml())
        words = ["sft", "--evaluate"] if job.variant is None else ["train"]
        with job.log.open("wb") as log:
            process = subprocess.Popen(
                [*self._worker, *words, str(settings)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=_end_with_parent,
                start_new_session=True,
            )
        self._running[job.name] = (job, process, time.monotonic())
        self._say(f"{job.name}: begins; its output is in {job.log}")

    def _end(self, job: Job, exit_code: int, seconds: float) -> None:
        if exit_code == 0 and job.is_finished:
            self._say(f"{job.name}: done after {seconds / 60:.1f} minutes{_outcome(job)}")
        else:
            with job.log.open("a") as log:
                log.write(f"\n{failure_line(exit_code)}\n")
            self.failed.append(job.name)
            self._say(f"{job.name}: failed with exit code {exit_code}; see {job.log}")
        write_comparison(self._study)

    def _say(self, text: str) -> None:
        self._console.print(f"{self._study.file.name}: {text}", highlight=False, soft_wrap=True)


def _outcome(job: Job) -> str:
    rates = {e["name"]: rate_of(e["total"])["rate"] for e in read_run(job.directory).evaluations}
    known = [f"{name} {rates[name]:.1%}" for name in ("start", "final") if rates.get(name) is not None]
    return f"; success: {', '.join(known)}" if known else ""


def share_evaluation(job: Job, start: Job) -> None:
    """Give a run the evaluation of the policy that it starts with, where its own would run the same episodes."""
    wanted = {"evaluation": job.config.evaluation.episodes, "pass_at_k": job.config.evaluation.sample_states}
    for folder, listed in (("evaluation", "episodes"), ("pass_at_k", "states")):
        source, target = start.directory / folder / "start.json", job.directory / folder / "start.json"
        if target.exists() or not source.exists():
            continue
        entries = json.loads(source.read_text())[listed]
        specs = [entry["spec"] for entry in entries]
        if len(specs) != wanted[folder] * len({spec["task_id"] for spec in specs}):
            continue
        if folder == "pass_at_k" and any(entry["episodes"] != job.config.evaluation.samples for entry in entries):
            continue
        for video in (start.directory / "videos").glob("start_*.mp4") if folder == "evaluation" else ():
            (job.directory / "videos").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, job.directory / "videos" / video.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, source.read_text())


def _check_variants(study: Study, check: Callable[[Config], object]) -> None:
    """All that would otherwise show only when a variant's turn comes, hours later."""
    for job in {job.variant: job for job in study.jobs if job.variant is not None and not job.is_finished}.values():
        where = f"study {study.file.name}, variant {job.variant!r}"
        try:
            check(job.config)
        except (ConfigError, PolicyError, RunError, SimError) as error:
            raise type(error)(f"{where}: {error}") from None
        given = {"demonstrations.path": job.config.demonstrations.path, "policy.checkpoint": job.config.policy.checkpoint}
        for key, path in given.items():
            made = job.start is not None and path is not None and path.is_relative_to(job.start.directory)
            if path is not None and not made and not path.exists():
                raise ConfigError(f"{where}: {key} is {path}, which does not exist")


def _check_settings(study: Study) -> None:
    for job in study.jobs:
        decisive = DECIDES_THE_END if job.is_finished and job.variant is not None else ()
        if has_results(job.directory) and (changed := changed_keys(job.directory, job.config, decisive)):
            raise RunError(
                f"{job.directory} was made with other values of {', '.join(sorted(changed))}; "
                "give the study another name, the same values, or remove that folder"
            )


def _end_with_parent() -> None:
    """Have the kernel end a run with the study: a run that goes on alone would be in the way of the resumed study."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
