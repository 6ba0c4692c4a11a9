"""Submit runs to SLURM as job arrays, each run once, and return.

Nothing waits here: what was queued is recorded under ``results/<tier>/launch/``, and a second
launch submits only what the first could not.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lsa_study import rundir
from lsa_study.config.asked import options_of
from lsa_study.config.experiment import Resources
from lsa_study.config.parts import why_not
from lsa_study.config.study import RunSpec
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError
from lsa_study.launch import scheduler
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.job import RunTask
from lsa_study.launch.known import KNOWN, known_alone
from lsa_study.launch.local import need_starts
from lsa_study.launch.process import Server
from lsa_study.launch.records import AUTOMATIC, Array, LaunchFolder
from lsa_study.rundir import RunDir

ENDLESS = 100_000
"""submitit counts time limits only until the run has begun; ours are counted by their progress."""


@dataclass
class Launched:
    """What a launch or a retry did, or with a dry run would do."""

    queued: list[Array] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    """The batch scripts, one for each array, of a dry run."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Names of the runs that were not queued, by the reason."""
    left: list[str] = field(default_factory=list)
    """Runs that SLURM did not take; a second launch goes on with them."""
    refusal: str | None = None
    """Why it did not."""
    local: list[RunSpec] = field(default_factory=list)
    """Of a retry: the runs that no cluster ever had, for the local queue."""

    @property
    def exit_code(self) -> int:
        """0 all that was missing is queued, 1 some of it is not, 3 none of it is, or could be."""
        if not self.left and not self.refusal:
            return 0
        return 1 if any(array.job for array in self.queued) else EnvironmentLacks.exit_code

    def lines(self) -> list[str]:
        """The message for the user."""
        lines = [
            f"{array.study}: {len(array.runs)} run{'s' * (len(array.runs) != 1)} as "
            + (f"job {array.job}" if array.job else "one array (dry run)")
            for array in self.queued
        ]
        for reason, names in sorted(self.skipped.items()):
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"{len(names)} {reason} ({shown})")
        if self.left:
            later = "the same command later goes on with them"
            lines.append(f"{len(self.left)} not queued: {self.refusal}; {later}")
        elif self.refusal:
            lines.append(f"SLURM would refuse this: {self.refusal}")
        return lines if lines or self.local else ["nothing to do"]


def launch(
    runs: Sequence[RunSpec],
    results: Path,
    cluster: Cluster,
    *,
    dry_run: bool = False,
    again: bool = False,
    anew: bool = False,
    fit: bool = False,
) -> Launched:
    """Queue the runs that have no result and are not queued, seed 0 of every row first.

    Args:
        runs: as ``study.distinct`` gives them.
        results: on a disk that the nodes see.
        dry_run: write and queue nothing, but fill ``scripts``.
        again: whether runs that failed of their own fault are tried again.
        anew: whether those are queued too that ``runs.parquet`` knows and no folder here.
        fit: cut steps into more parts where runs get fewer devices than they ask for.

    Raises:
        ConfigError: the devices that a run gets cannot share its steps.
        EnvironmentLacks: there is no SLURM here, it does not answer, or the data are missing.
    """
    runs = [_fitted(run, cluster.given(run.resources), fit) for run in runs]
    for command in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(command) is None:
            raise EnvironmentLacks(
                f"launch needs SLURM: {command} is not on PATH here. "
                "On a login node, load it; on this machine use lsa run"
            )
    try:
        scheduler.setting("ClusterName", "")
    except scheduler.Rejected as error:
        why = f"launch: SLURM does not answer here ({error}); go to a login node, or use lsa run"
        raise EnvironmentLacks(why) from None
    launched = Launched()
    for tier in sorted({run.settings.tier for run in runs}):
        records = LaunchFolder.of(results.absolute(), tier)
        of_tier = [run for run in runs if run.settings.tier == tier]
        with contextlib.nullcontext() if dry_run else records.lock():
            launcher = _Launcher(results.absolute(), tier, cluster, launched)
            if missing := launcher.missing(of_tier, again, anew):
                (launcher.try_out if dry_run else launcher.submit)(missing)
    return launched


class _Launcher:
    """One launch of one tier."""

    def __init__(self, results: Path, tier: str, cluster: Cluster, launched: Launched) -> None:
        self.results, self.cluster, self.launched = results, cluster, launched
        self.records = LaunchFolder.of(results, tier)
        self.existing = rundir.existing(results, tier)
        arrays, queue = self.records.in_hand()
        self.jobs = {
            identity: job
            for array in arrays
            for identity, job in array.jobs().items()
            if job in queue
        }
        """Those of runs of this tier, by identity; what is queued is added."""
        active = {scheduler.array_of(job) for job in queue}
        self.previous = next((one.job for one in reversed(arrays) if one.job in active), None)
        """The newest array that SLURM has in hand."""

    def missing(self, runs: list[RunSpec], again: bool, anew: bool) -> list[RunSpec]:
        """Of the runs, those to queue, in order."""
        missing, ended = [], {run.identity for run in runs if _has_result(self._folder(run))}
        alone = set() if anew else known_alone(runs, self.results, ended)
        for run in runs:
            here = options_of(self.results, run.settings.tier)
            reason = _why_not(run, self._folder(run), run.identity in self.jobs, again, here)
            reason = f"{KNOWN}; lsa launch --again" if run.identity in alone else reason
            if reason is None:
                missing.append(run)
            else:
                self.launched.skipped.setdefault(reason, []).append(run.name)
        if not again:
            need_starts(missing, self.existing, {*self.jobs, *(run.identity for run in missing)})
        by_identity = {run.identity: run for run in missing}
        self.ranks = {run.identity: _rank(run, by_identity) for run in missing}
        return sorted(missing, key=lambda run: (self.ranks[run.identity], run.seed))

    def try_out(self, runs: list[RunSpec]) -> None:
        """Write the scripts, and have SLURM look at one of each kind."""
        kinds: dict[tuple[Resources, int], str] = {}
        for chunk in self._plan(runs):
            array, _, script = self._prepared(chunk)
            kinds[array.resources, len(chunk)] = script
            self.launched.queued.append(array)
            self.launched.scripts.append(script)
        try:
            for script in kinds.values():
                scheduler.try_out(script)
        except scheduler.Rejected as error:
            self.launched.refusal = scheduler.explained(error)

    def submit(self, runs: list[RunSpec]) -> None:
        """Queue the runs, as many as one may."""
        if self.cluster.check_data == "here":  # before they wait for hours
            try:
                with Server() as server:
                    server.check_data(runs)
            except LsaError as error:
                where = "where only the nodes see the data: check_data: job"
                raise EnvironmentLacks(f"{error} ({where})") from None
        known = (self.cluster.submit_limit, scheduler.submit_limit())
        limit = min((limit for limit in known if limit is not None), default=None)
        room = len(runs) if limit is None else max(0, limit - len(scheduler.queue()))
        arrays = list(self._plan(runs[:room]))
        for number, chunk in enumerate(arrays, 1):
            try:
                self._queue(chunk)
            except scheduler.Rejected as error:
                why = scheduler.explained(error)
                refusal = f"SLURM refused array {number} of {len(arrays)}: {why}"
                for array in self.launched.queued:
                    refusal += f"; job {array.job} is queued, lsa cancel {array.study} removes it"
                self.launched.refusal = refusal
                break
        left = [run.name for run in runs if run.identity not in self.jobs]
        self.launched.left += left
        if left and self.launched.refusal is None:
            self.launched.refusal = f"no more than {limit} jobs may be queued at once"

    def _plan(self, runs: Sequence[RunSpec]) -> Iterator[list[RunSpec]]:
        """Cut the runs into arrays of equal resources that SLURM can number.

        Runs that begin from others come in later arrays than these.
        """
        most = int(scheduler.setting("MaxArraySize", "1001"))
        seeds_apart = len({run.resources for run in runs}) > 1
        groups: dict[Any, list[RunSpec]] = {}
        for run in runs:
            kind = self.ranks[run.identity], run.resources, seeds_apart and run.seed
            groups.setdefault(kind, []).append(run)
        for group in groups.values():
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _folder(self, run: RunSpec) -> RunDir:
        here = rundir.runs_folder(self.results, run.settings.tier) / run.name
        return self.existing.get(run.identity) or RunDir(here)

    def _prepared(
        self, runs: Sequence[RunSpec], after: Sequence[str] = ()
    ) -> tuple[Array, SlurmExecutor, str]:
        """A submission that waits for other jobs, what submits it, and its batch script."""
        array = Array(
            key=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}",
            runs=tuple(self._folder(run).root.name for run in runs),
            study=runs[0].study,
            resources=runs[0].resources,
            user=str(os.getuid()),
            created=time.time(),
        )
        folder = self.records.root / array.key
        executor = SlurmExecutor(folder, max_num_timeout=ENDLESS, python=self.cluster.command)
        asked, gpus = self.cluster.options(array.resources), self.cluster.gpus_of(array.resources)
        if after:
            asked["dependency"] = ":".join(["afterany", *after])
        job = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        executor.update_parameters(
            job_name=f"lsa-{array.study}",
            comment=array.comment,
            array_parallelism=self.cluster.throttle or len(runs),
            stderr_to_stdout=True,
            wckey=None,
            setup=[
                f"export LSA_GPUS={gpus} LSA_LEAVE_SECONDS={asked['signal_delay_s']}",
                # submitit refuses to save where a life that was killed left a file half written.
                f"rm -f {shlex.quote(str(folder))}/{job}_*.save_tmp",
                *self.cluster.setup,
            ],
            **asked,
        )
        writer = copy.copy(executor)
        if len(runs) > 1:
            writer.parameters = {**executor.parameters, "map_count": len(runs)}
        script = writer._make_submission_file_text(writer._submitit_command_str, "")
        return array, executor, str(script)

    def _queue(self, runs: Sequence[RunSpec]) -> None:
        """Submit one array."""
        # The jobs, queued or running, of the runs that these begin from.
        starts = {run.start for run in runs}
        after = [job for identity, job in self.jobs.items() if identity in starts]
        # Each array has a throttle of its own, so only one may be under way.
        if self.previous is not None and self.cluster.throttle is not None:
            after.append(self.previous)
        array, executor, script = self._prepared(runs, after)
        folders = [self._folder(run) for run in runs]
        new = [folder for folder in folders if not folder.root.exists()]
        for run, folder in zip(runs, folders, strict=True):
            folder.create(
                run.settings, variant=run.variant, start=run.start, reference=run.reference
            )
            self.records.cancelled(run.identity).unlink(missing_ok=True)
        self.records.write(array)
        try:
            with scheduler.plain_environment():
                jobs = executor.submit_array([RunTask(str(folder.root)) for folder in folders])
        except (FailedJobError, FailedSubmissionError) as error:
            self.launched.scripts.append(script)
            for made in (self.records.root / array.key, *(folder.root for folder in new)):
                shutil.rmtree(made)
            raise scheduler.Rejected(scheduler.plain_words(str(error))) from None
        self.previous = scheduler.array_of(jobs[0].job_id)
        queued = replace(array, job=self.previous, cluster=scheduler.setting("ClusterName", ""))
        self.records.write(queued)
        self.launched.queued.append(queued)
        self.jobs |= queued.jobs()


def _fitted(run: RunSpec, given: Resources, fit: bool) -> RunSpec:
    """The run on what it is given; with ``fit`` no device does more of a step at once."""
    devices, asked = given.nodes * given.gpus, run.resources.nodes * run.resources.gpus
    settings, wanted = run.settings, asked * run.settings.runtime.accumulate
    if fit and devices < asked:
        if wanted % devices:
            raise ConfigError(
                f"--fit: {run.name} does a step in {wanted} parts, which {devices} devices cannot "
                "share evenly; give it a number of devices that divides the parts"
            )
        runtime = settings.runtime.model_copy(update={"accumulate": wanted // devices})
        settings = settings.model_copy(update={"runtime": runtime})
    if reason := why_not(settings, devices):
        raise ConfigError(f"{run.name}: {reason}")
    return replace(run, resources=given, settings=settings)


def _rank(run: RunSpec, runs: Mapping[str, RunSpec]) -> int:
    """How many of ``runs`` have to be trained one after the other before this one."""
    before = None if run.start is None else runs.get(run.start)
    return 0 if before is None else 1 + _rank(before, runs)


def _has_result(folder: RunDir) -> bool:
    with contextlib.suppress(ConfigError):
        return folder.result() is not None
    return True


def _why_not(run: RunSpec, folder: RunDir, queued: bool, again: bool, here: str) -> str | None:
    """Why a run is not queued; None if it is. ``here``: of commands that are suggested."""
    try:
        result = folder.result()
    except ConfigError:
        return "have a result that cannot be read; lsa status names them"
    if result is not None:
        return f"{result.outcome} already"
    if queued:
        return "queued or running already"
    if folder.writer() is not None:
        return "being trained already"
    status = folder.status()
    if status.state == "failed" and status.cause not in AUTOMATIC and not again:
        cause = status.cause
        return f"failed ({cause}); when that is mended: lsa retry --cause {cause}{here}"
    parts = run.settings.runtime.accumulate
    if folder.root.exists() and folder.settings().runtime.accumulate < parts:
        first = f"lsa gc STUDY{here} moves them away first"
        return f"begun with steps in fewer than {parts} parts; {first}"
    return None
