"""What a run records, field by field: its result, its state, and what each attempt ran on.

Reading is lenient about what is missing (None) or unknown (ignored), and strict about values: a
wrong type is an error that names the field. What reports do with a field stands beside it, as a
``Fact``: the sections of ``lsa diff``, the answer of ``lsa why`` and the notes on rows that were
not made alike all follow from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lsa_study.config.task import OF_TASK
from lsa_study.errors import ConfigError

Outcome = Literal["done", "diverged", "oom", "stopped early"]
State = Literal["waiting", "running", "stopped", "failed"] | Outcome
"""stopped: left at a step boundary, to be continued; outcomes are results."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""States that end a run for good: they stand in tables and are not run again."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Percent = Annotated[float, Field(ge=0, le=100)]


def _finite(value: float | None) -> float | None:
    """NaN is a value that is missing."""
    if value is not None and math.isinf(value):
        raise ValueError("must be finite")
    return None if value != value else value


Number = Annotated[float | None, AfterValidator(_finite)]


@dataclass(frozen=True)
class Fact:
    """What reports do with a field of a result."""

    section: Literal["code", "environment", "metrics"]
    """Where ``lsa diff`` lists it."""
    why: bool = False
    """``lsa why`` shows it of each run."""
    mismatch: str = ""
    """Must be equal in two rows for their difference to mean the factor; its name where it is not.
    """
    refuses: bool = False
    """Rows that differ in it are not compared at all; others are, with a mark."""
    follows: tuple[str, ...] = ()
    """Settings that set it: where one of these is the factor, the fact may differ."""


class _Record(BaseModel):
    """A JSON object of the run folder; keys that a reader does not know are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Make the record from a file's content.

        Raises:
            ConfigError: it is no JSON object, or a value has a wrong type or range; says which.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            found = {one["loc"][0]: one["input"] for one in error.errors() if one["loc"]}
            values = ", ".join(f"{name} = {value!r:.50}" for name, value in found.items())
            readable = found and "outcome" not in found
            raise ConfigError(f"holds {values}" if readable else "is unreadable") from None

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return self.model_dump(by_alias=True)


def judged(acc1: float | None, metrics: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The first metric of a task that is known, by its name in ``config.task``, and its value."""
    found = {**metrics, "acc1": acc1}
    firsts = ((of_task[0], found.get(of_task[0])) for of_task in OF_TASK.values())
    return next(((name, value) for name, value in firsts if value is not None), None)


def score_of(acc1: float | None, metrics: Mapping[str, float | None]) -> float | None:
    """The value of that metric."""
    known = judged(acc1, metrics)
    return known and known[1]


AnyRecord = TypeVar("AnyRecord", bound=_Record)


class Facts(_Record):
    """What is known of a run before it trains: of its data, its network, its code and machine."""

    device: Annotated[str | None, Fact("environment", why=True, mismatch="chip")] = None
    """The name of the chip."""
    device_kind: Annotated[str | None, Fact("environment", mismatch="device kind")] = None
    """cpu or cuda."""
    precision: Annotated[
        str | None,
        Fact("environment", why=True, mismatch="precision", follows=("train.precision",)),
    ] = None
    """The type of the matrix products: float32, tf32, bfloat16 or float16."""
    torch: Annotated[str | None, Fact("code", why=True, mismatch="torch")] = None
    """Its version."""
    commit: Annotated[str | None, Fact("code", why=True, mismatch="commit")] = None
    """Of the code that ran, 40 hex digits; None outside a repository. Compared where a digest of
    the sources is unknown."""
    dirty: Annotated[bool | None, Fact("code", why=True)] = None
    """Whether the code had changed since the commit."""
    code: Annotated[str | None, Fact("code", why=True, mismatch="code")] = None
    """SHA-256 of the sources that compute, as they were installed."""
    fused: Annotated[str | None, Fact("code", why=True, mismatch="path taken")] = None
    """Which fused kernels ``auto`` took where they fit, or that there were none."""
    threads: Annotated[Count | None, Fact("environment", mismatch="threads")] = None
    """Of torch, on the CPU."""
    processes: Annotated[Count | None, Fact("environment", mismatch="processes")] = None
    """That train together."""
    implementation: Annotated[str | None, Fact("code", why=True)] = None
    """What computed the operators, such as ``UnifiedSpatialOp: auto``."""
    effective_batch: Annotated[
        Count | None,
        Fact("environment", mismatch="effective batch", follows=("train.batch_size",)),
    ] = None
    """Images of a step, over all parts and processes."""
    weights: Annotated[
        str | None,
        Fact("metrics", mismatch="reported weights", follows=("evaluation.weights",)),
    ] = None
    """Which weights are reported: model or ema."""
    selected: Annotated[
        str | None, Fact("metrics", mismatch="reported epoch", follows=("evaluation.epoch",))
    ] = None
    """Which epoch is reported: last; best, by the test set; or best by validation."""
    data_fingerprint: Annotated[
        str | None,
        # Label maps are part of the data where a row learns from them.
        Fact("environment", why=True, mismatch="data", refuses=True, follows=("train.tokens",)),
    ] = None
    """Equal for equal images and labels in equal order."""
    train_images: Annotated[
        Count | None,
        Fact(
            "metrics",
            mismatch="training images",
            refuses=True,
            follows=("data.train_limit", "data.validation"),
        ),
    ] = None
    test_images: Annotated[Count | None, Fact("metrics", mismatch="test images", refuses=True)] = (
        None
    )
    params: Annotated[Count | None, Fact("metrics")] = None
    """Trainable numbers of the network."""
    macs: Annotated[Count | None, Fact("metrics")] = None
    """Multiply-adds of one image, in the article's convention."""
    epochs: Annotated[Count | None, Fact("metrics")] = None
    """How many the settings ask for."""
    schema_version: Annotated[Count | None, Field(alias="schema"), Fact("code")] = None
    """``SCHEMA_VERSION`` of the settings; ``schema`` in the file."""
    identity: str | None = None
    variant: str | None = None
    """The row that asked for the run first."""
    seed: Count | None = None

    def shown(self, name: str) -> str:
        """A fact as text for people, hashes cut short."""
        value = getattr(self, name)
        if value is None:
            return "unknown"
        if name == "commit":
            return f"{value[:10]}{' with local changes' * bool(self.dirty)}"
        return str(value)[:10] if name == "code" else str(value)


LATER = ("metrics", "metrics_missing")
"""Fields of a result that the runs of most studies have no use for."""


class Result(Facts):
    """``result.json``: how a run ended, for good; written once."""

    outcome: Annotated[Outcome, Fact("metrics")]
    """done, diverged (a loss was not finite), oom (the device's memory was too small) or stopped
    early (given up by ``runtime.stop``)."""
    reason: Annotated[str | None, Fact("metrics", why=True)] = None
    """Why it is not done, as a message with epoch and step."""
    start: str | None = None
    """What its weights were initialised from: a run's name, or a file and its SHA-256."""
    continued: Annotated[str | None, Fact("code", why=True)] = None
    """What changed between its attempts, as a message; None where all ran alike."""
    acc1: Annotated[Percent | None, Fact("metrics", why=True)] = None
    """Top-1 accuracy of the reported weights on the test images, percent; None unless done."""
    acc5: Annotated[Number, Fact("metrics")] = None
    """Top-5 accuracy of the same, percent."""
    loss: Annotated[Number, Fact("metrics")] = None
    """Cross entropy of the same, mean over test images."""
    best_acc1: Annotated[Number, Fact("metrics")] = None
    """Highest top-1 accuracy of any epoch, percent; on the images that epochs are judged by."""
    ema_acc1: Annotated[Number, Fact("metrics")] = None
    """Top-1 accuracy of the averaged weights, percent; None if there are none."""
    token_cosine: Annotated[Number, Fact("metrics")] = None
    """Mean cosine of two tokens behind the stem, by the reported weights on the first test images;
    of runs that set ``model.stem`` alone."""
    metrics: dict[str, Number] = {}
    """Of the task where it is not to classify, and of functions from outside, by name, of the same
    weights on the same images; None where one gave no number. Where weights are averaged, another
    task's also of both networks, such as ``model_box_ap`` and ``ema_box_ap``."""
    metrics_missing: str | None = None
    """Why numbers of ``metrics`` are missing, as a message."""
    epoch: Annotated[Count | None, Fact("metrics")] = None
    """The reported epoch, or the one in which the run ended, from 1."""
    seconds: Annotated[Number, Fact("metrics")] = None
    """Of training and evaluation, over all attempts."""
    seconds_per_epoch: Annotated[Number, Fact("metrics")] = None
    processor_seconds_per_epoch: Annotated[Number, Fact("metrics")] = None
    """Of all its cores together, whatever else the machine did; of runs of one process on a CPU,
    without the processes that load for it."""
    peak_memory_bytes: Annotated[Count | None, Fact("metrics")] = None
    """Most that was held: tensors on a GPU, the process on a CPU."""
    attempts: Annotated[Count | None, Fact("metrics", why=True)] = None
    """How often the run was started."""
    finished: Annotated[str | None, Fact("metrics", why=True)] = None
    """When, in UTC as ISO 8601 writes it."""

    @property
    def score(self) -> float | None:
        """The number that a run is judged by first: its accuracy, or its task's first metric."""
        return score_of(self.acc1, self.metrics)

    def as_json(self) -> dict[str, Any]:
        """What the file holds; of metrics and the cosine of tokens, only where there are some."""
        found = super().as_json()
        idle = {*(() if self.metrics else LATER)}
        idle |= {"token_cosine"} if self.token_cosine is None else set()
        return {k: v for k, v in found.items() if k not in idle}

    @classmethod
    def facts(cls) -> Iterator[tuple[str, str, Fact | None]]:
        """Each field: its name in Python, its name in files and answers, its ``Fact``."""
        for name, field in cls.model_fields.items():
            fact = next((one for one in field.metadata if isinstance(one, Fact)), None)
            yield name, field.alias or name, fact


class Status(_Record):
    """``status.json``: where a run stands, as its writer last reported; replaced whole."""

    state: State = "waiting"
    heartbeat: Number = None
    """Seconds since 1970 of the last report."""
    epoch: Count = 0
    """Epochs done."""
    step: Count = 0
    """Steps done of the running epoch."""
    saved: tuple[Count, Count] = (0, 0)
    """Epochs, and steps of the next, that the last checkpoint holds; of all attempts."""
    epochs: Count | None = None
    attempt: Count | None = None
    """The number of the running attempt, from 1."""
    host: str | None = None
    job: str | None = None
    """The scheduler's name of the job, where one started it."""
    pid: int | None = None
    cause: str | None = None
    """Why it stopped or failed, such as config, data, node, preempted."""
    message: str | None = None
    eta_seconds: Number = None
    """Left at the pace of this attempt."""
    acc1: Number = None
    """Top-1 accuracy of the last epoch that was tested, percent."""
    metrics: dict[str, Number] = {}
    """Of the same epoch, of a task that has others."""

    @property
    def score(self) -> float | None:
        """As of a result."""
        return score_of(self.acc1, self.metrics)

    def as_json(self) -> dict[str, Any]:
        """What the file holds; of metrics, only where there are some."""
        return {k: v for k, v in super().as_json().items() if k != "metrics" or v}


class Writer(_Record):
    """``owner.json``: who writes in the folder."""

    host: str
    pid: int
    job: str | None = None
    """The scheduler's name of its job, where one started it."""
    start: float
    """Seconds since 1970."""
    token: str = ""
    """Of this ownership alone: whoever has another one writes no more."""
    machine: str | None = None
    """Boot and process table that ``pid`` means something in; None where the system has no name."""
    process: str | None = None
    """What tells the process from a later one with its number: when it began, in the system's form.
    """


class Attempt(Facts):
    """``attempts/NNN/environment.json``: what one attempt ran on."""

    host: str | None = None
    pid: int | None = None
    platform: str | None = None
    python: str | None = None
    """Its version."""
    packages: dict[str, str] = {}
    """Versions by name."""
    cuda: str | None = None
    """Version that torch was built for; None on a CPU."""
    driver: str | None = None
    """Version of the GPU's; None on a CPU."""
    kernels: str | None = None
    """Which fused kernels there were for the device, or why there were none."""
    choices: str | None = None
    """The table of choices that ``auto`` followed on a GPU, or why none, and what it chose."""
    attention: str | None = None
    """What computed window attention in training where no kernel of ours did, and why."""


COMPARED = [(name, fact) for name, _, fact in Result.facts() if fact and fact.mismatch]
"""The facts that must be equal in two rows, by name."""


_compared = attrgetter(*(name for name, _ in COMPARED), "dirty")


def unlike(records: Sequence[Facts]) -> Iterator[tuple[Fact, list[str]]]:
    """The facts that must be equal and are not in these records, with each record's as text.

    Unknown in all of them counts as equal. The code is equal where the digests of its sources are;
    commits say it where a digest is unknown.
    """
    if len(set(map(_compared, records))) == 1:
        return
    left_out = "commit" if all(one.code for one in records) else "code"
    for name, fact in COMPARED:
        if name == left_out:
            continue
        values = {getattr(one, name) for one in records}
        changed = {one.dirty for one in records} if name == "commit" else ()
        if len(values) > 1 or len(changed) > 1:
            yield fact, [one.shown(name) for one in records]


def changes(attempts: Sequence[Attempt]) -> str | None:
    """In what a run's attempts differ that must be equal in two rows, or in the driver."""
    found = [(fact.mismatch, shown) for fact, shown in unlike(attempts)]
    if len({one.driver for one in attempts}) > 1:
        found.append(("driver", [one.shown("driver") for one in attempts]))
    return "; ".join(f"{what} {', then '.join(dict.fromkeys(v))}" for what, v in found) or None
