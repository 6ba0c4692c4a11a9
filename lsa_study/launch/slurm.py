"""Submit runs to SLURM as job arrays, each run once, and return.

Nothing waits here: what was queued is recorded under ``results/<tier>/launch/``, and a second
launch submits only what the first could not.
"""

from __future__ import annotations

import copy
import getpass
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lsa_study import rundir
from lsa_study.config.study import Run
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError
from lsa_study.launch import cluster as clusters
from lsa_study.launch import scheduler
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.job import RunTask
from lsa_study.launch.local import need_starts
from lsa_study.launch.process import Server, need_data
from lsa_study.launch.records import (
    AUTOMATIC,
    COMMENT_PREFIX,
    Array,
    LaunchFolder,
    identity_of,
    new_key,
)
from lsa_study.rundir import RunDir

ENDLESS = 100_000
"""submitit counts time limits only until the run has begun; ours are counted by their progress."""


@dataclass
class Launched:
    """What a launch did, or with a dry run would do."""

    queued: list[Array] = field(default_factory=list)
    already: dict[str, list[str]] = field(default_factory=dict)
    """Runs that were not queued, by the reason."""
    left: list[str] = field(default_factory=list)
    """Runs that SLURM did not take; a second launch goes on with them."""
    refusal: str | None = None
    """Why it did not."""
    scripts: list[str] = field(default_factory=list)
    """The batch scripts, one for each array; a dry run shows them."""

    @property
    def count(self) -> int:
        """How many runs were queued."""
        return sum(len(array.runs) for array in self.queued)

    @property
    def exit_code(self) -> int:
        """0 all that was missing is queued, 1 some of it is not."""
        return 1 if self.left else 0

    def add(self, other: Launched) -> None:
        """Join what another launch did to this."""
        self.queued += other.queued
        self.left += other.left
        self.scripts += other.scripts
        self.refusal = self.refusal or other.refusal
        for reason, names in other.already.items():
            self.already.setdefault(reason, []).extend(names)

    def words(self) -> list[str]:
        """What to tell the user, line by line."""
        lines = [
            f"{array.study}: {len(array.runs)} run{'s' * (len(array.runs) != 1)} as "
            + (f"job {array.job}" if array.job else "one array (dry run)")
            for array in self.queued
        ]
        lines += [f"{len(runs)} {reason}" for reason, runs in sorted(self.already.items())]
        if self.left:
            lines.append(
                f"{len(self.left)} not queued: {self.refusal}; "
                "the same command later goes on with them"
            )
        return lines or ["nothing to do"]


def launch(
    runs: Sequence[Run],
    results: Path,
    cluster: Cluster,
    *,
    mode: Literal["submit", "dry-run"] = "submit",
    again: Callable[[Run], bool] | None = None,
) -> Launched:
    """Queue the runs that have no result and are not queued, seed 0 of every row first.

    Args:
        runs: as ``study.distinct`` gives them.
        results: the results folder, on a disk that the nodes see.
        cluster: what the site wants; ``cluster.read``.
        mode: submit; or dry-run, which writes and queues nothing and fills ``scripts``.
        again: whether a run that failed of its own fault is tried again; None: none is.

    Raises:
        EnvironmentLacks: there is no SLURM here, the data are missing, or SLURM refuses all of it.
    """
    if mode not in ("submit", "dry-run"):
        raise ValueError(f"mode={mode!r}: give submit or dry-run")
    scheduler.require()
    launched = Launched()
    results = results.absolute()
    for tier in sorted({run.settings.tier for run in runs}):
        launcher = _Launcher(LaunchFolder.of(results, tier), results, cluster, launched)
        of_tier = [run for run in runs if run.settings.tier == tier]
        launcher.work(of_tier, mode, again)
    if launched.left and not launched.queued:
        raise EnvironmentLacks(launched.refusal or "SLURM took nothing")
    return launched


class _Launcher:
    """One launch of one tier."""

    def __init__(
        self, records: LaunchFolder, results: Path, cluster: Cluster, launched: Launched
    ) -> None:
        self.records, self.results, self.cluster = records, results, cluster
        self.launched = launched

    def work(self, runs: list[Run], mode: str, again: Callable[[Run], bool] | None) -> None:
        if mode == "dry-run":
            tried = set()
            for chunk in self._plan(self._missing(runs, again)):
                array = self._array(chunk)
                script = _script(self._executor(array), len(chunk))
                self.launched.queued.append(array)
                self.launched.scripts.append(script)
                if (kind := (array.resources, len(chunk))) not in tried:
                    tried.add(kind)
                    _try(script)
            return
        with self.records.lock():
            missing = self._missing(runs, again)
            if missing:
                self._submit(missing)

    # -- what is missing ----------------------------------------------------------------------

    def _missing(self, runs: list[Run], again: Callable[[Run], bool] | None) -> list[Run]:
        in_queue = self._in_queue()
        self.existing = rundir.existing(self.results, runs[0].settings.tier)
        missing = []
        for run in runs:
            folder = self.existing.get(run.identity)
            reason = None if folder is None else _ended(folder)
            if reason is None and run.identity in in_queue:
                reason = "queued or running already"
            elif reason is None and folder is not None:
                reason = _better_not(folder, forgiven=again is not None and again(run))
            if reason is None:
                missing.append(run)
            else:
                self.launched.already.setdefault(reason, []).append(run.name)
        if again is None:
            need_starts(missing, self.existing, in_queue | {run.identity for run in missing})
        by_identity = {run.identity: run for run in missing}
        return sorted(missing, key=lambda run: (_place(run, by_identity), run.seed))

    def _in_queue(self) -> set[str]:
        """Identities of the runs that SLURM has in hand."""
        arrays = self.records.arrays()
        self.jobs = scheduler.queue({array.user for array in arrays})
        if any(array.job is None for array in arrays):
            arrays = self.records.adopt(self.jobs)
        return {
            identity_of(name)
            for array in arrays
            for index, name in enumerate(array.runs)
            if array.job_of(index) in self.jobs
        }

    # -- arrays -------------------------------------------------------------------------------

    def _plan(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Cut the runs into arrays of equal resources that SLURM can number.

        Runs that begin from others come in later arrays than these.
        """
        most = scheduler.setting("MaxArraySize", 1001)
        seeds_apart = len({run.resources for run in runs}) > 1
        by_identity = {run.identity: run for run in runs}
        groups: dict[Any, list[Run]] = {}
        for run in sorted(runs, key=lambda run: _place(run, by_identity)):
            place = _place(run, by_identity)
            groups.setdefault((place, run.resources, seeds_apart and run.seed), []).append(run)
        for group in groups.values():
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _array(self, runs: Sequence[Run]) -> Array:
        resources = runs[0].resources
        return Array(
            key=new_key(),
            runs=tuple(self._folder(run).root.name for run in runs),
            study=runs[0].study,
            resources=resources,
            gpus=clusters.gpus_of(resources, self.cluster),
            user=getpass.getuser(),
            created=time.time(),
        )

    def _folder(self, run: Run) -> RunDir:
        here = rundir.runs_folder(self.results, run.settings.tier) / run.name
        return self.existing.get(run.identity) or RunDir(here)

    def _executor(self, array: Array, after: Sequence[str] = ()) -> SlurmExecutor:
        executor = SlurmExecutor(self.records.folder_of(array), max_num_timeout=ENDLESS)
        asked = clusters.sbatch_parameters(array.resources, self.cluster)
        if after:
            asked["dependency"] = ":".join(["afterany", *after])
        executor.update_parameters(
            job_name=f"lsa-{array.study}",
            comment=COMMENT_PREFIX + array.key,
            array_parallelism=self.cluster.throttle or len(array.runs),
            stderr_to_stdout=True,
            wckey=None,
            setup=self._setup(array, asked["signal_delay_s"]),
            **asked,
        )
        return executor

    def _setup(self, array: Array, leave_seconds: int) -> list[str]:
        folder = shlex.quote(str(self.records.folder_of(array)))
        job = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        return [
            "umask 077",
            f"export LSA_GPUS={array.gpus} LSA_LEAVE_SECONDS={leave_seconds}",
            # submitit refuses to save where a life that was killed left a file half written.
            f"rm -f {folder}/{job}_*.save_tmp",
            *self.cluster.setup,
        ]

    # -- submitting ---------------------------------------------------------------------------

    def _submit(self, runs: list[Run]) -> None:
        if self.cluster.check_data == "here":
            check_data(runs)
        room = self._room()
        fits, left = (runs, []) if room is None else (runs[:room], runs[room:])
        arrays, previous = list(self._plan(fits)), self._last_active()
        for number, chunk in enumerate(arrays):
            try:
                previous = self._queue(chunk, previous)
            except scheduler.Rejected as error:
                left += [run for part in arrays[number:] for run in part]
                self.launched.refusal = self._refused(error, number, len(arrays))
                break
        self.launched.left += [run.name for run in left]
        if left and self.launched.refusal is None:
            self.launched.refusal = f"no more than {self.limit} jobs may be queued at once"

    def _room(self) -> int | None:
        """How many more jobs one may queue; None if nobody says."""
        known = (self.cluster.submit_limit, scheduler.submit_limit())
        self.limit = min((limit for limit in known if limit is not None), default=None)
        return None if self.limit is None else max(0, self.limit - len(self.jobs))

    def _last_active(self) -> str | None:
        """The newest array of earlier launches that SLURM still has in hand."""
        active = {scheduler.array_of(job) for job in self.jobs}
        jobs = [array.job for array in self.records.arrays() if array.job in active]
        return jobs[-1] if jobs else None

    def _queue(self, runs: list[Run], previous: str | None) -> str:
        """Submit one array; returns its job."""
        array = self._array(runs)
        # Each array has a throttle of its own, so only one may be under way.
        throttled = previous is not None and self.cluster.throttle is not None
        after = [*([str(previous)] if throttled else []), *self._jobs_of({r.start for r in runs})]
        executor = self._executor(array, after)
        scheduler.try_script(_script(executor, len(runs)))
        folders = [self._folder(run) for run in runs]
        for run, folder in zip(runs, folders, strict=True):
            folder.create(run.settings, variant=run.variant, start=run.start)
        self.records.write(array)
        self.records.forget([run.identity for run in runs])
        try:
            jobs = executor.submit_array([RunTask(str(folder.root)) for folder in folders])
        except (FailedJobError, FailedSubmissionError) as error:
            shutil.rmtree(self.records.folder_of(array))
            raise scheduler.Rejected(scheduler.plain_words(str(error))) from None
        queued = replace(array, job=scheduler.array_of(jobs[0].job_id))
        self.records.write(queued)
        self.launched.queued.append(queued)
        return str(queued.job)

    def _jobs_of(self, identities: set[str | None]) -> list[str]:
        """The jobs, queued or running, of the runs that others begin from."""
        if identities == {None}:
            return []
        queued = {array.job for array in self.launched.queued}
        jobs = [
            (array.job_of(index), array.job in queued)
            for array in self.records.arrays()
            for index, name in enumerate(array.runs)
            if identity_of(name) in identities
        ]
        return [job for job, new in jobs if job is not None and (new or job in self.jobs)]

    def _refused(self, error: scheduler.Rejected, number: int, arrays: int) -> str:
        words = f"SLURM refused array {number + 1} of {arrays}: {_explained(error)}"
        for array in self.launched.queued:
            words += f"; job {array.job} is queued, lsa cancel {array.study} removes it"
        return words


def _place(run: Run, runs: Mapping[str, Run]) -> int:
    """How many of ``runs`` have to be trained one after the other before this one."""
    before = None if run.start is None else runs.get(run.start)
    return 0 if before is None else 1 + _place(before, runs)


def _explained(error: scheduler.Rejected) -> str:
    words = str(error)
    if "partition" in words.lower():
        words += f"; known partitions: {', '.join(scheduler.partitions()) or 'none'}"
    return words


def _try(script: str) -> None:
    try:
        scheduler.try_script(script)
    except scheduler.Rejected as error:
        raise EnvironmentLacks(f"SLURM would refuse this: {_explained(error)}") from None


def _script(executor: SlurmExecutor, runs: int) -> str:
    """The batch script that submitit will write."""
    if runs > 1:
        executor = copy.copy(executor)
        executor.parameters = {**executor.parameters, "map_count": runs}
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _ended(folder: RunDir) -> str | None:
    """How the run ended, in words; None if it did not."""
    try:
        result = folder.result()
    except ConfigError:
        return "have a result that cannot be read; lsa status names them"
    return None if result is None else f"{result.outcome} already"


def _better_not(folder: RunDir, *, forgiven: bool) -> str | None:
    """Why a run that did not end is not queued; None if it is."""
    if folder.writer() is not None:
        return "being trained already"
    status = folder.status()
    cause = str(status.cause)
    if status.state == "failed" and cause not in AUTOMATIC and not forgiven:
        return f"failed ({cause}); when that is mended: lsa retry --cause {cause}"
    return None


def check_data(runs: Sequence[Run]) -> None:
    """Look for the data of the runs here, before they wait for hours.

    Raises:
        EnvironmentLacks: some are missing.
    """
    with Server() as server:
        try:
            need_data(server.check_data(runs).wait())
        except LsaError as error:
            where = "where only the nodes see the data: check_data: job"
            raise EnvironmentLacks(f"{error} ({where})") from None
