"""Queue again what stopped, failed or got lost; which of it depends on the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lsa_study.config.asked import options_of
from lsa_study.config.experiment import Resources
from lsa_study.config.names import nearest
from lsa_study.config.parts import smaller, why_not
from lsa_study.config.settings import Settings
from lsa_study.config.study import RunSpec
from lsa_study.errors import ConfigError
from lsa_study.launch import scheduler
from lsa_study.launch.cancel import UNFINISHED, discard
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import AUTOMATIC, IDLE_LIVES, Array, LaunchFolder
from lsa_study.launch.slurm import Launched, launch
from lsa_study.launch.status import RunStatus, status
from lsa_study.rundir import identity_of

CAUSES = (
    *AUTOMATIC, "cancelled", "disk", "oom-host", "config", "data", "import", "bug", "oom",
    "stopped-early",
)  # fmt: skip
"""What may be named; without a name only ``AUTOMATIC`` is tried again."""


def retry(
    results: Path,
    names: Sequence[str],
    cluster: Cluster,
    *,
    causes: Sequence[str] = (),
    tier: str | None = None,
    accumulate: int | None = None,
) -> Launched:
    """Queue runs again by the cause of their end; they go on from their last checkpoint.

    Args:
        causes: of ``CAUSES``; empty: those that say nothing against the run, unless the last
            ``IDLE_LIVES`` lives gained nothing.
        accumulate: for the cause ``oom``: cut each step in so many parts, with the same effective
            batch and identity. The old folder moves to the trash.

    Raises:
        ConfigError: a cause that does not exist.
        EnvironmentLacks: SLURM is missing or refuses.
    """
    if unknown := [cause for cause in causes if cause not in CAUSES]:
        raise ConfigError(f"--cause {unknown[0]}: no such cause; {nearest(unknown[0], CAUSES)}")
    rows = status(results, names, tier=tier)
    tiers = {row.tier: LaunchFolder.of(results, row.tier) for row in rows}
    arrays = {
        identity_of(name): array
        for records in tiers.values()
        for array in records.arrays()
        for name in array.runs
    }
    runs: list[RunSpec] = []
    local: list[RunSpec] = []
    skipped: dict[str, list[str]] = {}
    bad_nodes: set[str] = set()
    for row in rows:
        asked = row.state in ("oom", "stopped early") and row.state.replace(" ", "-") in causes
        if row.state not in UNFINISHED and not asked:
            continue
        records = tiers[row.tier]
        processes = _processes(arrays.get(row.identity))
        if reason := _why_not(row, causes, records, accumulate, processes):
            skipped.setdefault(f"not tried again: {reason}", []).append(row.name)
            continue
        run = _run(row, arrays.get(row.identity), results, accumulate)
        (runs if row.identity in arrays else local).append(run)
        # Where it found no device; SLURM itself keeps away from nodes that are down.
        if row.folder.status().cause == "node" and run.resources.nodes == 1:
            bad_nodes |= {life.host for life in records.lives(row.identity)[-1:]}
    for records in tiers.values():
        held = records.held()
        if held and {identity_of(name) for name in held["runs"]} & {run.identity for run in runs}:
            scheduler.order("release", held["arrays"])
            records.note_held(None)
    exclude = [*filter(None, [cluster.exclude]), *sorted(bad_nodes)]
    site = cluster.model_copy(update={"exclude": ",".join(exclude) or None})
    done = launch(runs, results, site, again=True, anew=True) if runs else Launched()
    return replace(done, skipped=done.skipped | skipped, local=local)


def _why_not(
    row: RunStatus, causes: Sequence[str], records: LaunchFolder, accumulate: int | None,
    processes: int,
) -> str | None:  # fmt: skip
    """Why a run that did not end well is not tried again; None if it is."""
    where = row.folder.root.parents[2]
    here = options_of(where, row.tier)
    if row.state == "oom":
        settings = row.folder.settings()
        if accumulate is not None:
            return why_not(_in_parts(settings, accumulate), processes)
        less = smaller(settings, processes)
        again = f"lsa retry --cause oom --accumulate {less.accumulate}{here}"
        way = again if less.accumulate else less
        return f"out of memory is its result; for the same effective batch in less memory: {way}"
    if row.state != "stopped early" and row.cause not in (causes or AUTOMATIC):
        return f"{row.cause}; when that is mended: lsa retry --cause {row.cause}{here}"
    if not causes and records.idle(row.identity):
        return (
            f"its last {IDLE_LIVES} lives gained nothing (lsa logs {row.name}{options_of(where)}); "
            f"lsa retry --cause {row.cause}{here} tries all the same"
        )
    return None


def _in_parts(settings: Settings, accumulate: int) -> Settings:
    runtime = settings.runtime.model_copy(update={"accumulate": accumulate})
    return settings.model_copy(update={"runtime": runtime})


def _processes(array: Array | None) -> int:
    return 1 if array is None else array.resources.nodes * array.resources.gpus


def _run(row: RunStatus, array: Array | None, results: Path, accumulate: int | None) -> RunSpec:
    """The run of a row: in more parts if it was out of memory, to its end if stopped early."""
    if row.state == "stopped early":
        row.folder.reopen()
        row.folder.change_state("stopped", cause="stopped-early")
    settings, config = row.folder.settings(), row.folder.config()
    start, reference = config.get("start"), config.get("reference")
    if row.state == "oom":
        assert accumulate is not None
        settings = _in_parts(settings, accumulate)
        discard(row.folder.root, results / row.tier)
        row.folder.create(settings, variant=row.variant, start=start, reference=reference)
    study = array.study if array is not None else ""
    resources = array.resources if array is not None else Resources()
    name = row.variant
    return RunSpec(study, name, name, row.seed, settings, row.identity, resources, start, reference)
