"""Queue again what stopped, failed or got lost; which of it depends on the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsa_study.config.settings import Settings
from lsa_study.config.study import Resources, Run
from lsa_study.errors import ConfigError
from lsa_study.launch import scheduler
from lsa_study.launch.cancel import UNFINISHED, discard
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import AUTOMATIC, IDLE_LIVES, Array, LaunchFolder, identity_of
from lsa_study.launch.slurm import Launched, launch
from lsa_study.launch.status import RunStatus, status

CAUSES = (
    *AUTOMATIC, "cancelled", "disk", "oom-host", "config", "data", "import", "bug", "oom",
)  # fmt: skip
"""What may be named; without a name only ``AUTOMATIC`` is tried again."""


@dataclass
class Retried:
    """What a retry did."""

    launched: Launched | None = None
    """The runs that went to SLURM; None if none did."""
    local: list[Run] = field(default_factory=list)
    """Runs that no cluster ever had: for the local queue."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Run names by the reason why they were not tried again."""

    def words(self) -> list[str]:
        """What to tell the user, line by line."""
        lines = self.launched.words() if self.launched is not None else []
        for reason, names in sorted(self.refused.items()):
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"{len(names)} not tried again ({shown}): {reason}")
        return lines or ["nothing to try again"]


def retry(
    results: Path,
    names: Sequence[str],
    cluster: Cluster,
    *,
    causes: Sequence[str] = (),
    tier: str | None = None,
    accumulate: int | None = None,
) -> Retried:
    """Queue runs again by the cause of their end; they go on from their last checkpoint.

    Args:
        results: the results folder.
        names: studies or beginnings of run names; empty: all runs.
        cluster: what the site wants.
        causes: of ``CAUSES``; empty: those that say nothing against the run, unless the last
            ``IDLE_LIVES`` lives gained nothing.
        tier: toy, proxy or paper; None: all that have runs.
        accumulate: for the cause ``oom``: cut each step in so many parts, with the same effective
            batch and identity. The old folder moves to the trash.

    Raises:
        ConfigError: a cause that does not exist.
        EnvironmentLacks: SLURM is missing or refuses.
    """
    if unknown := [cause for cause in causes if cause not in CAUSES]:
        raise ConfigError(f"--cause {unknown[0]}: no such cause; known: {', '.join(CAUSES)}")
    work = _Retry(results, cluster, tuple(causes), accumulate)
    rows = [row for row in status(results, names, tier=tier) if row.folder is not None]
    for one in sorted({row.tier for row in rows}):
        work.queue_again([row for row in rows if row.tier == one], one)
    return work.done


class _Retry:
    def __init__(
        self, results: Path, cluster: Cluster, causes: tuple[str, ...], accumulate: int | None
    ) -> None:
        self.results, self.cluster = results, cluster
        self.causes, self.accumulate = causes, accumulate
        self.done = Retried()

    def queue_again(self, rows: Sequence[RunStatus], tier: str) -> None:
        """Queue the runs of one tier."""
        self.records = LaunchFolder.of(self.results, tier)
        arrays = {identity_of(name): one for one in self.records.arrays() for name in one.runs}
        runs: list[Run] = []
        bad_nodes: set[str] = set()
        for row in rows:
            reason = self._why_not(row)
            if reason is not None:
                self.done.refused.setdefault(reason, []).append(row.name)
            elif self._wanted(row):
                run = self._run(row, arrays.get(row.identity))
                bad_nodes |= self._bad_nodes(row, run)
                (runs if row.identity in arrays else self.done.local).append(run)
        if runs:
            self._let_go_on({run.identity for run in runs})
            self._launch(runs, bad_nodes)

    def _wanted(self, row: RunStatus) -> bool:
        if row.state == "oom":
            return "oom" in self.causes
        return row.state in UNFINISHED

    def _why_not(self, row: RunStatus) -> str | None:
        """Why a run that did not end well is not tried again; None if it is, or ended well."""
        if row.state == "oom" and "oom" in self.causes and self.accumulate is None:
            assert row.folder is not None
            parts = 2 * row.folder.settings().runtime.accumulate
            return (
                "out of memory is its result; for the same effective batch in less memory: "
                f"lsa retry --cause oom --accumulate {parts}"
            )
        if row.state not in UNFINISHED:
            return None
        if row.cause not in (self.causes or AUTOMATIC):
            return f"{row.cause}; when that is mended: lsa retry --cause {row.cause}"
        if not self.causes and self.records.idle(row.identity):
            return (
                f"its last {IDLE_LIVES} lives gained nothing (lsa logs {row.name}); "
                f"lsa retry --cause {row.cause} tries all the same"
            )
        return None

    def _bad_nodes(self, row: RunStatus, run: Run) -> set[str]:
        """The node on which a run found no device; SLURM itself keeps away from those down."""
        assert row.folder is not None
        lives = self.records.lives(row.identity)
        told_itself = row.folder.status().cause == "node" and run.resources.nodes == 1
        return {lives[-1].host} if told_itself and lives else set()

    def _run(self, row: RunStatus, array: Array | None) -> Run:
        assert row.folder is not None
        settings, start = row.folder.settings(), row.folder.config().get("start")
        if row.state == "oom":
            settings = self._in_more_parts(row, settings, start)
        study = array.study if array is not None else ""
        resources = array.resources if array is not None else Resources()
        name = row.variant
        return Run(study, name, name, row.seed, settings, row.identity, resources, start)

    def _in_more_parts(self, row: RunStatus, settings: Settings, start: str | None) -> Settings:
        assert row.folder is not None
        discard(row.folder.root, self.results / row.tier)
        runtime = settings.runtime.model_copy(update={"accumulate": self.accumulate})
        finer = settings.model_copy(update={"runtime": runtime})
        row.folder.create(finer, variant=row.variant, start=start)
        return finer

    def _let_go_on(self, identities: set[str]) -> None:
        """Release the queue if it was held for one of these runs."""
        held = self.records.held()
        if held is not None and identities & {identity_of(name) for name in held["runs"]}:
            scheduler.release(held["arrays"])
            self.records.note_held(None)

    def _launch(self, runs: Sequence[Run], bad_nodes: set[str]) -> None:
        away = [self.cluster.exclude] if self.cluster.exclude else []
        exclude = ",".join([*away, *sorted(bad_nodes)]) or None
        cluster = self.cluster.model_copy(update={"exclude": exclude})
        launched = launch(runs, self.results, cluster, again=lambda run: True)
        if self.done.launched is None:
            self.done.launched = launched
        else:
            self.done.launched.add(launched)
