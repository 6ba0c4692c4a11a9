"""The local queue: train what is missing here, seed 0 of every row first.

One run per GPU at a time, or ``--jobs`` of them, since a small run fills a fraction; without a
GPU one run, or ``--jobs``. A run whose process dies takes no other with it, and none outlives the
queue.
"""

from __future__ import annotations

import contextlib
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.live import Live

from lsa_study import rundir
from lsa_study.config.study import RunSpec
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.launch.board import Board
from lsa_study.launch.known import known_alone
from lsa_study.launch.process import POLL_SECONDS, Child, Server, ended_by
from lsa_study.launch.records import EQUAL_FAILURES, INTERRUPTED, LaunchFolder, error_of
from lsa_study.launch.rehearse import key, read_rehearsals
from lsa_study.machine import cores, gpu_bytes, need_bfloat16, visible_gpus
from lsa_study.record import OUTCOMES, Status
from lsa_study.rundir import RunDir
from lsa_study.terminal import STYLES, wrapped
from lsa_study.training import StopOnSignals


def need_starts(
    runs: Iterable[RunSpec], known: Mapping[str, RunDir], coming: Collection[str]
) -> None:
    """Check that what runs begin from is trained, or will be before them.

    Args:
        known: the run folders there are, by identity.
        coming: identities of the runs that are under way or will be trained with these.

    Raises:
        EnvironmentLacks: some are not; all are named.
    """
    lacking = []
    for run in runs:
        start = run.settings.train.start
        if start is None or run.start is None or run.start in coming:
            continue
        if run.identity in known and known[run.identity].last_checkpoint.exists():
            continue  # it goes on from there
        before = known.get(run.start)
        result = None if before is None else before.result()
        if before is None or result is None:
            why = "has not been trained here, so there are no weights; ask for that row too"
            if start.study is not None:
                why = (
                    f"has not been trained here at tier {run.settings.tier} with seed {run.seed}; "
                    f"train that row of {start.study} first, or ask for it in the same call"
                )
        elif result.outcome != "done":
            why = f"ended {result.outcome}; give another row, or mend that one"
        elif not before.weights.is_file():
            why = (
                f"is done, but its weights {before.weights} are gone; put them back, or move its "
                "folder away and train it again"
            )
        else:
            continue
        lacking.append(f"{run.name}: begins from {start.what} ({run.start}), which {why}")
    if lacking:
        raise EnvironmentLacks("\n".join(lacking))


def need_room(runs: Sequence[RunSpec], results: Path, *, jobs: int, gpus: int) -> None:
    """Check that so many runs at once, on each GPU, have a core each, and fit by their rehearsals.

    Raises:
        ConfigError: they do not; it says how many do.
    """
    if jobs == 1:
        return
    where, most = f"--jobs {jobs}", max(1, cores() // max(1, gpus))
    if jobs > most:
        runs_at_once = f"{jobs * gpus} runs at once, {jobs} on each GPU," if gpus else "these runs"
        raise ConfigError(
            f"{where}: {runs_at_once} want a core each of the {cores()} there are; give --jobs "
            f"{most} at most"
        )
    peaks: list[int] = []
    for tier in {run.settings.tier for run in runs} if gpus else ():
        rows = read_rehearsals(results, tier)
        found = [rows.get(key(run.settings)) for run in runs if run.settings.tier == tier]
        peaks += [row.peak_bytes or 0 for row in found if row and row.device_kind == "cuda"]
    peaks = sorted(peaks, reverse=True)[:jobs]
    if (there := gpu_bytes() if peaks else None) is None or sum(peaks) <= there:
        return
    fit = max(1, sum(held <= there for held in accumulate(peaks)))
    raise ConfigError(
        f"{where}: as rehearsed, the largest {len(peaks)} runs take {sum(peaks) / 1e9:.1f} GB "
        f"together, and a GPU has {there / 1e9:.1f} GB; give --jobs {fit} at most"
    )


class Queue:
    """Runs waiting for a GPU, or for their share of the cores.

    Args:
        jobs: at once on each GPU, or on a machine without one in all; None: one.
    """

    def __init__(self, results: Path, *, jobs: int | None, console: Console) -> None:
        self.results, self.console = results, console
        self.jobs = jobs
        self.finished: dict[str, str] = {}
        """Run name -> its state after this call."""
        self.already = self.elsewhere = self.held = 0
        """Runs that had a result before, those that ``runs.parquet`` alone knows, and those that
        were not tried after equal failures."""
        self.interrupted = False
        self.waiting: list[RunSpec] = []
        self.active: dict[int, tuple[RunSpec, RunDir, Child]] = {}
        """By place: runs share the GPUs by their number."""
        self.deaths: list[str | None] = []
        """The errors of the runs that failed since one last ended well."""

    @property
    def exit_code(self) -> int:
        """0 good, 1 some run failed, 130 interrupted."""
        if self.interrupted:
            return 130
        good = all(state in OUTCOMES for state in self.finished.values())
        return 0 if good and not self.held else 1

    def work(
        self,
        runs: Sequence[RunSpec],
        *,
        started: Callable[[], None] = lambda: None,
        again: bool = False,
    ) -> Self:
        """Train what has no result yet; ``started`` is called once nothing is known to lack.

        ``again``: also what ``runs.parquet`` knows and no folder here.

        Raises:
            ConfigError: so many ``jobs`` do not fit.
            LsaError: the data are missing, a GPU's driver fails, the processor cannot compute in
                the precision asked for, or the results folder cannot be written; nothing ran.
        """
        self.known: dict[str, RunDir] = {}
        for tier in {run.settings.tier for run in runs}:
            self.known |= rundir.existing(self.results, tier)
        self.waiting = [run for run in runs if self._folder(run).result() is None]
        self.already = len(runs) - len(self.waiting)
        if not again:
            ended = {run.identity for run in runs} - {run.identity for run in self.waiting}
            alone = known_alone(runs, self.results, ended)
            self.elsewhere = sum(run.identity in alone for run in self.waiting)
            self.waiting = [run for run in self.waiting if run.identity not in alone]
        need_starts(self.waiting, self.known, {run.identity for run in self.waiting})
        if not self.waiting:
            started()
            return self
        wanted = any(run.settings.runtime.device != "cpu" for run in self.waiting)
        self.gpus = visible_gpus() if wanted else []
        if not self.gpus and any(run.settings.train.precision == "bf16" for run in self.waiting):
            need_bfloat16()
        need_room(self.waiting, self.results, jobs=self.jobs or 1, gpus=len(self.gpus))
        self.places = range((self.jobs or 1) * max(1, len(self.gpus)))
        with StopOnSignals(self._kill_all) as stop, Server(len(self.places)) as self.server:
            self.server.check_data(self.waiting, stop)
            if not stop():
                started()
            self.board = Board(len(self.places), done=self.already)
            # On a terminal the queue shows all runs; in a pipe each says its own lines.
            with contextlib.ExitStack() as stack:
                if self.console.is_terminal:
                    live = Live(console=self.console, auto_refresh=False, transient=True)
                    self.live = stack.enter_context(live)
                self._train_all(stop)
        return self

    def _folder(self, run: RunSpec) -> RunDir:
        """An existing one of its identity, else the one it will get."""
        here = rundir.runs_folder(self.results, run.settings.tier) / run.name
        return self.known.get(run.identity) or RunDir(here)

    def _train_all(self, stop: StopOnSignals) -> None:
        while True:
            if stop() and not self.interrupted:
                self._stop_all(stop.signal)
            for place in self.places:
                if place not in self.active:
                    self._start_next(place)
            if not self.active:
                return
            self._show()
            children = [child for _, _, child in self.active.values()]
            ended, _, _ = select.select(children, [], [], POLL_SECONDS)
            for place, (run, folder, child) in list(self.active.items()):
                if child in ended:
                    self._note(run, folder, child.wait())
                    del self.active[place]

    def _running(self) -> list[tuple[str, Status]]:
        return [(run.name, folder.status()) for run, folder, _ in self.active.values()]

    def _show(self) -> None:
        if self.console.is_terminal:
            view = self.board.shown(self._running(), len(self.waiting), self.console.width)
            self.live.update(view, refresh=True)

    def _start_next(self, place: int) -> None:
        """Start the next run that does not wait for another's weights."""
        coming = {run.identity for run in self.waiting}
        coming |= {run.identity for run, _, _ in self.active.values()}
        run = next((run for run in self.waiting if run.start not in coming), None)
        if run is None:
            return
        self.waiting.remove(run)
        folder = self._folder(run)
        folder.create(run.settings, variant=run.variant, start=run.start, reference=run.reference)
        LaunchFolder.of_run(folder.root).cancelled(run.identity).unlink(missing_ok=True)
        shows_all = self.console.is_terminal
        self.board.begun[run.name] = time.monotonic()
        gpu = self.gpus[place % len(self.gpus)] if self.gpus else None
        self.active[place] = run, folder, self.server.train(folder, gpu=gpu, quiet=shows_all)
        if not shows_all:
            line = self.board.line(self._running(), len(self.waiting))
            self.console.print(f"{run.name}: begins; {line}", highlight=False, markup=False)

    def _note(self, run: RunSpec, folder: RunDir, report: Mapping[str, Any]) -> None:
        """Note how a run ended; hold the rest if too many died of the same error."""
        status, error = folder.status(), report.get("error")
        if "error" not in report and folder.result() is None:
            error = self._record_death(folder, report.get("code"))
            status = folder.status()
        elif status.state == "failed":
            error = error or status.message
        elif status.state == "running":
            error = error or "failed, and why could not be recorded; free some space"
        self.finished[run.name] = "failed" if error else status.state
        self.board.end(run.name)
        if not error:
            if self.console.is_terminal:
                said = f"{run.name}: {status.state}  {status.message or ''}"
                self.console.print(said, style=STYLES[status.state], markup=False, highlight=False)
            self.deaths.clear()
            return
        self.console.print(f"{run.name}: {error}", style="red", markup=False, highlight=False)
        self.deaths.append(died_of := error_of(folder))
        if self.waiting and died_of and self.deaths.count(died_of) >= EQUAL_FAILURES:
            self.held = len(self.waiting)
            self.waiting.clear()
            held = (
                f"The last {EQUAL_FAILURES} runs died with the same error. Held the other "
                f"{self.held}. Fix it, then call the same command again."
            )
            self.console.print("\n".join(wrapped(held)), style="red")

    def _record_death(self, folder: RunDir, code: int | None) -> str | None:
        """Record for a run that its process died; returns why, unless the user wanted it."""
        if self.interrupted and code in (-signal.SIGKILL, -signal.SIGTERM, 130):
            message = "left at once; the last checkpoint stands"
            folder.change_state("stopped", cause=INTERRUPTED, message=message)
            return None
        cause, message = "bug", f"its process ended by {ended_by(code)}"
        if code == -signal.SIGKILL:
            cause = "oom-host"
            message += ", most likely since memory ran out; give it more, or set fewer --jobs"
        folder.change_state("failed", cause=cause, message=message)
        return message

    # -- leaving ------------------------------------------------------------------------------

    def _stop_all(self, number: signal.Signals | None) -> None:
        self.interrupted = True
        self.waiting.clear()
        if number in (signal.SIGTERM, signal.SIGHUP):
            self.server.end()  # nobody is there to wait for a long step
            return
        for _, _, child in self.active.values():
            child.stop()
        self.console.print("Stopping after this step... (again within 5 s: leave now)")

    def _kill_all(self) -> None:
        for _, _, child in self.active.values():
            child.kill()
