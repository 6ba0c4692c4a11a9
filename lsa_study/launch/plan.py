"""What would run: the answer of ``lsa plan``, as data and as words. Writes nothing."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsa_study import rundir
from lsa_study.config import shipped, yaml
from lsa_study.config.asked import about, every_asked, options_of
from lsa_study.config.contrast import confounds
from lsa_study.config.fidelity import sources
from lsa_study.config.find import TIERS, list_studies, remembered, tiers_of
from lsa_study.config.names import counted, short
from lsa_study.config.parts import why_not
from lsa_study.config.settings import Settings
from lsa_study.config.study import RunSpec, Study, distinct
from lsa_study.config.task import NEEDS
from lsa_study.data import DataLacks, head_rows, weights
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError, Refused, noting
from lsa_study.launch import rehearse
from lsa_study.launch.cluster import Cluster, read_cluster
from lsa_study.launch.known import KNOWN, known_alone
from lsa_study.record import OUTCOMES
from lsa_study.terminal import wrapped


def plan_json(study: Study) -> dict[str, Any]:
    """One study's runs with their resolved settings, at the paper tier with the source of each."""
    sourced: dict[str, Any] = {variant: {} for variant in study.variants}
    if study.tier == "paper":
        for variant in sourced:
            found = sources(study, variant).items()
            listed = {setting: {"source": one.kind, "place": one.place} for setting, one in found}
            sourced[variant] = {"sources": listed}
    return {
        "study": short(study.file.study),
        **study.apart,
        "tier": study.tier,
        "factor": ", ".join(study.file.factor),
        "baseline": study.file.baseline,
        "runs": [
            {key: getattr(run, key) for key in ("name", "identity", "variant", "seed")}
            | ({} if run.start is None else {"start": run.start})
            | {"settings": run.settings.model_dump(mode="json")}
            | sourced[run.variant]
            for run in study.runs()
        ],
    }


def plan_text(studies: Sequence[Study], results: Path) -> str:
    """A block for each study and a last line that counts the distinct runs."""
    states: dict[str, str] = {}
    rehearsed: dict[str, rehearse.Rehearsed] = {}
    for tier in {one.tier for one in studies}:
        rehearsed |= rehearse.read_rehearsals(results, tier)
        for identity, folder in rundir.existing(results, tier).items():
            result = folder.result()
            states[identity] = result.outcome if result else folder.status().state
    site = read_cluster()
    runs = distinct(studies)
    ended = {identity for identity, state in states.items() if state in OUTCOMES}
    broken: list[str] = []
    states |= dict.fromkeys(known_alone(runs, results, ended, broken), KNOWN)
    asked = {run.identity for run in runs}
    blocks = [_block(one, studies, results, states, rehearsed, site, asked) for one in studies]
    todo = [run for run in runs if states.get(run.identity) not in DONE]
    epochs = sum(run.settings.train.epochs for run in runs)
    last = [f"{len(runs)} distinct runs, {counted(epochs, 'epoch')} in all, {len(todo)} to do"]
    if len(studies) > 1:
        # The studies' own costs count a shared run in each.
        costs = rehearse.predicted(todo, rehearsed)
        last += [line for topic, line in costs if topic == "cost"]
    blocks.append("; ".join(last))
    return "\n".join([*blocks, *broken])


ELSA = "ELSA: What Limits the Performance of Local Self-attention?"
OWN = "Of this folder"
"""Works of the shipped studies that name none, and of others."""
DONE = (*OUTCOMES, KNOWN)
"""States of runs that are not trained again."""


def known_studies(results: Path) -> list[str]:
    """A line for each study there is, by work, and for each side study of a results folder."""
    known = list_studies()
    width = max(map(len, known))
    works: dict[str, list[str]] = {ELSA: []}
    for stem, path in known.items():
        work = ELSA if path.resolve().parent == shipped.ROOT / "experiments" else OWN
        try:
            data = yaml.read(path).data
            work = str(data.get("work") or work)
            tiers = " ".join(tiers_of(str(path)))
            line = f"{stem:<{width}}  {data.get('title', '')} ({tiers})"
        except LsaError as error:
            line = f"{stem:<{width}}  {error}"
        works.setdefault(work, []).append(line)
    lines = [
        line
        for work, studies in works.items()
        if studies
        for line in (f"{work}:", *(f"  {study}" for study in studies))
    ]
    for tier in TIERS:
        for name, asked in every_asked(results, tier)[0].items():
            if asked.study:
                of = f"side study of {asked.of}"
                said = about(of, [*asked.overrides, *asked.grid], asked.only, asked.seeds)
                lines.append(f"{name}  {said} ({tier})")
    return lines + [f"{name}  {path}" for name, path in remembered(results).items()]


def check_starts(studies: Sequence[Study]) -> None:
    """Look for the maps of classifiers wherever the weights that they belong to lie here.

    Raises:
        DataLacks: weights are here and their map is not.
        ConfigError: a map holds something else than numbers of rows.
    """
    for run in distinct(studies):
        start = run.settings.train.start
        if start is None or start.weights is None or start.map is None:
            continue
        try:
            weights(run.settings.data, start.weights)
        except DataLacks:  # the machine that plans need not see the data
            continue
        head_rows(run.settings.data, start.map)


def check_tasks(runs: Sequence[RunSpec]) -> None:
    """Look for the packages that the tasks of runs need; none is imported.

    Raises:
        EnvironmentLacks: some are not installed; all are named.
    """
    kinds = dict.fromkeys(run.settings.task.kind for run in runs)
    lacking = [
        f"task.kind={kind!r}: the package {NEEDS[kind]} is not installed; "
        "pip install 'lsa_study[detection]'"
        for kind in kinds
        if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None
    ]
    if lacking:
        raise EnvironmentLacks("\n".join(lacking), cause="import")


def check_outside(runs: Sequence[RunSpec]) -> None:
    """Try what runs take from outside, in this process; without such runs torch is not imported.

    Raises:
        ConfigError: all that is not as it should be, with the rows that take it.
    """
    mistakes: dict[str, dict[str, None]] = {}
    tried: dict[str, list[str]] = {}
    for run in runs:
        if not run.settings.paths():
            continue
        from lsa_study.training.outside import check

        one = run.settings
        same = repr((one.model, one.data.image_size, one.evaluation.metrics))
        if same not in tried:
            tried[same] = []
            with noting(tried[same]):
                check(one)
        for mistake in tried[same]:
            mistakes.setdefault(mistake, {})[run.variant] = None
    if mistakes:
        raise ConfigError(*(f"{', '.join(rows)}: {said}" for said, rows in mistakes.items()))


def check_models(studies: Sequence[Study]) -> str:
    """Build every distinct network in a process of its own and prove that each differs.

    Raises:
        Refused: some option does not reach the network; all such rows are named.
    """
    # Two studies may call different networks the same, so it is not the names that count.
    networks = {(r.settings.model, r.settings.data.image_size): r for r in distinct(studies)}
    variants = {run.name: run.settings.model_dump_json() for run in networks.values()}
    # A process of its own: planning does not import torch.
    command = [sys.executable, "-m", "lsa_study.models.ablation_check"]
    told = subprocess.run(
        command, input=json.dumps(variants), capture_output=True, text=True, check=False
    )
    if told.returncode != 0:
        raise LsaError(f"the models cannot be built: {told.stderr.strip().splitlines()[-1]}")
    answer = json.loads(told.stdout)
    if answer["inactive"]:
        raise Refused("\n".join(answer["inactive"]))
    return f"{answer['built']} networks built; no two of them are the same"


def _block(
    study: Study,
    studies: Sequence[Study],
    results: Path,
    states: dict[str, str],
    rehearsed: Mapping[str, rehearse.Rehearsed],
    site: Cluster,
    asked: Collection[str],
) -> str:
    runs, groups, factor = study.runs(), study.file.groups, study.file.factor
    names = [f"{one} ({', '.join(groups[one])})" if one in groups else one for one in factor]
    alike = f"ok: only {', '.join(names)} differ{'s' * (len(names) == 1)}"
    also = [f"{name} also changes {'; '.join(more)}" for name, more in confounds(study).items()]
    counts = Counter(states.get(run.identity) for run in runs)
    todo = [run for run in runs if states.get(run.identity) not in DONE]
    mine = {run.identity: run.variant for run in runs}
    shared = [
        f"{', '.join(sorted(common))} with {other.name}"
        for other in studies
        if other is not study
        and (common := {mine[run.identity] for run in other.runs() if run.identity in mine})
    ]
    costs = rehearse.predicted(todo, rehearsed)
    # No command need know a side study's name yet, or that of a study which is not run.
    stem, only = short(study.file.study), [f"--only={study.only}"] if study.only else []
    if list_studies().get(stem) is None:
        stem = shlex.quote(str(study.document.path))
    flags = [f"--grid={one}" for one in study.flags]
    options = shlex.join([*(f"--set={one}" for one in study.overrides), *flags, *only])
    named = f"{stem}{options_of(results, study.tier)}{f' {options}' if options else ''}"
    if todo and not costs:
        costs = [("cost", f"not rehearsed; lsa rehearse {named} measures it")]
    known = f", of which {counts[KNOWN]} {KNOWN}" if counts[KNOWN] else ""
    done = f"{len(runs) - len(todo)} done{known}, {counts['running']} running, {len(todo)} to do"
    lines = [
        ("about", study.about),
        ("contrast", "; ".join(also) or alike),
        ("reuse", done),
        ("shared", "; ".join(shared)),
        ("train", _protocol(runs[0].settings)),
        *_starts(study, runs, asked, states),
        ("stop", _rule(runs)),
        *costs,
        ("cluster", _smaller(named, todo, site)),
    ]
    head = (
        f"{study.name} ({study.tier}): {len(study.variants)} variants x "
        f"{counted(len(study.seeds), 'seed')} = {len(runs)} runs   "
        f"baseline: {study.file.baseline}"
    )
    shown = [head]
    for topic, line in ((topic, line) for topic, line in lines if line):
        text = f"  {topic:<9} {line}"
        # Others hold commands, which must stay whole.
        shown += wrapped(text, further=12) if topic == "about" else [text]
    return "\n".join(shown)


def _starts(
    study: Study, runs: Sequence[RunSpec], asked: Collection[str], states: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What rows begin from; of those of other studies, how far they are and which are missing."""
    said, lacking, needs = [], dict[str, dict[str, None]](), dict[str, list[str]]()
    for run in runs:
        needs.setdefault(run.variant, []).append(run.start or "")
    for variant, settings in study.variants.items():
        if (start := settings.train.start) is None:
            continue
        line = f"{variant} from {start.what}"
        if start.study is not None:
            needed = needs[variant]
            far = Counter(
                states.get(one, "asked for too" if one in asked else "not run") for one in needed
            )
            each = [f"{n} {state}" if len(needed) > 1 else state for state, n in far.items()]
            line += f" ({', '.join(each)})"
            if far["not run"]:
                lacking.setdefault(start.study, {})[str(start.row)] = None
        said.append(line)
    first = "; ".join(f"{','.join(rows)} of {other}" for other, rows in lacking.items())
    hint = f"{first}, with these seeds: train them before, or in the same call"
    return [("start", "; ".join(said)), ("first", first and hint)]


def _rule(runs: Sequence[RunSpec]) -> str:
    """When runs are given up, if a rule says so."""
    rules = {run.settings.runtime.stop for run in runs if run.reference is not None} - {None}
    return "; ".join(
        f"early, more than {rule.margin:g} points below the reference row's same seed from "
        f"{100 * rule.at:g} % of the epochs on"
        for rule in rules
        if rule is not None
    )


def _protocol(settings: Settings) -> str:
    data, train = settings.data, settings.train
    limits = {"images": data.train_limit, "test images": data.test_limit}
    parts = [f"first {number} {what}" for what, number in limits.items() if number]
    parts += [f"{data.validation} images held out"] if data.validation else []
    limited = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{data.name}{limited} at {data.image_size} px, {settings.model.backbone}, "
        f"{counted(train.epochs, 'epoch')}, batch {train.batch_size}, lr {train.lr:g}"
    )


def _smaller(study: str, runs: Sequence[RunSpec], site: Cluster) -> str:
    """What to do where cluster.yaml gives runs other devices than can share their steps."""
    for run in runs:
        given = site.given(run.resources)
        if given.nodes * given.gpus >= run.resources.nodes * run.resources.gpus and (
            reason := why_not(run.settings, given.nodes * given.gpus)
        ):
            return f"lsa launch refuses {run.name}: {reason}"
    pairs = [(run.resources, site.given(run.resources)) for run in runs]
    counts = {(asked.nodes * asked.gpus, here.nodes * here.gpus) for asked, here in pairs}
    short = ", ".join(f"{given} of {asked}" for asked, given in sorted(counts) if given < asked)
    return short and f"{short} devices a run; the same memory for each: lsa launch {study} --fit"
