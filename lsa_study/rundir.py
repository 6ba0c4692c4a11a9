"""A run on disk. The only module that knows the names of the files in a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError
from pydantic_core import from_json

from lsa_study import by_image
from lsa_study.config import names
from lsa_study.config.settings import SCHEMA_VERSION, Settings
from lsa_study.config.yaml import parse
from lsa_study.errors import ConfigError, Refused
from lsa_study.files import foreign_link, plain_file, read_whole, writable, write_json, write_whole
from lsa_study.ownership import OwnedFolder
from lsa_study.record import Attempt, Result, State, Status

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUMBER = int | float | None
"""What a record of an epoch may hold."""
# The C code writes the same language several times faster; not every build has it.
_Dumper: type[Any] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class RunDir(OwnedFolder):
    """One run's folder.

    ``config.yaml``            what was asked, resolved and sorted; written once, before training
    ``owner.json``             who writes here now (host, process, job); removed on leaving
    ``status.json``            state, cause, epoch, step, heartbeat, attempt; replaced whole
    ``metrics.jsonl``          one line per epoch with its attempt; append only, the last line of
                               an epoch wins
    ``result.json``            final metrics; a run has ended if and only if this file exists
    ``correct.npz``            one bit per test image: was it classified rightly
    ``image_scores.npz``       in its place, one number per test image, of tasks that have such
    ``seen.jpg``               what the network finds in a few test images, of such tasks
    ``checkpoint/last.pt``     where to resume; ``previous.pt`` stands in when it is torn
    ``checkpoint/weights.safetensors``  final weights
    ``attempts/001/``          log and environment of each attempt
    ``tracking/wandb/``        what a tracker shows of all this; can be made again
    """

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.root / "checkpoint" / "last.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before it."""
        return self.root / "checkpoint" / "previous.pt"

    @property
    def weights(self) -> Path:
        """The final weights, as safetensors."""
        return self.root / "checkpoint" / "weights.safetensors"

    @property
    def correct_bits(self) -> Path:
        """Packed bits, one per test image in the data set's order."""
        return self.root / "correct.npz"

    @property
    def image_scores_file(self) -> Path:
        """What each test image adds to a metric, in the data set's order."""
        return self.root / "image_scores.npz"

    @property
    def seen_file(self) -> Path:
        """A picture of what the network finds in a few test images, of tasks that find things."""
        return self.root / "seen.jpg"

    @property
    def tracking(self) -> Path:
        """Folders of experiment trackers by their name: copies of the metrics, never read."""
        return self.root / "tracking"

    @property
    def identity(self) -> str:
        """The identity that the folder's name ends with."""
        return identity_of(self.root.name)

    def sibling(self, identity: str) -> RunDir | None:
        """The run of another identity at the same tier, whatever row first asked for it."""
        if not re.fullmatch("[0-9a-f]{10}", identity):
            raise ConfigError(f"{self.root}: begins from {identity[:20]!r}; give an identity")
        return next((RunDir(path) for path in self.root.parent.glob(f"*-{identity}")), None)

    def create(self, settings: Settings, *, variant: str, **others: str | None) -> None:
        """Make the folder for these settings. Safe to call again after a preemption.

        Args:
            variant: the row that asked for it first.
            others: identities of the run whose weights it begins from (``start``) and of the one
                that ``runtime.stop`` measures it by (``reference``), if they are.

        Raises:
            ConfigError: the row cannot be called so; see ``config.names``.
            Refused: the folder already holds a run with other settings.
            EnvironmentLacks: the folder cannot be written.
        """
        names.short(variant)  # it is refused where it is none
        if (self.root / "config.yaml").exists():
            differ = self.settings().differing(settings)
            if not differ:
                return
            raise Refused(
                f"{self.root}: holds another run ({', '.join(differ)} differ); "
                "choose another --results folder, or move this one away"
            )
        document = {
            "identity": settings.identity(),
            "schema": SCHEMA_VERSION,
            "variant": variant,
            "settings": settings.model_dump(mode="json"),
        } | {key: identity for key, identity in others.items() if identity is not None}
        with writable(self.root):
            for folder in (self.root, self.root / "checkpoint", self.root / "attempts"):
                folder.mkdir(parents=True, exist_ok=True)
            text = yaml.dump(document, Dumper=_Dumper, sort_keys=True)
            write_whole(self.root / "config.yaml", text)

    def config(self) -> dict[str, Any]:
        """Read what was asked: identity, schema, variant and settings.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        with contextlib.suppress(ValueError, RecursionError):
            document = parse(self.config_text())
            if isinstance(document, dict) and "settings" in document:
                return document
        raise self._no_config()

    def config_text(self) -> str:
        """The same as it is written.

        Raises:
            ConfigError: the file is missing or no text.
        """
        with contextlib.suppress(OSError, ValueError):
            if (content := read_whole(self.root / "config.yaml")) is not None:
                return content.decode()
        raise self._no_config()

    def _no_config(self) -> ConfigError:
        path = self.root / "config.yaml"
        return ConfigError(f"{path}: is not a run's configuration; move the folder away")

    def settings(self) -> Settings:
        """Read the resolved settings."""
        document = self.config()
        if document.get("schema") != SCHEMA_VERSION:
            raise ConfigError(
                f"{self.root}: was made by schema {document.get('schema')}, this is "
                f"{SCHEMA_VERSION}; keep its results apart, or use the version that made it"
            )
        try:
            settings = Settings.model_validate(document["settings"])
        except ValidationError:
            raise self._no_config() from None
        if (identity := settings.identity()) != document.get("identity"):
            raise ConfigError(
                f"{self.root}: its config.yaml was edited since the run was made, its settings are "
                f"those of run {identity}; undo that, or move the folder away"
            )
        return settings

    @contextlib.contextmanager
    def owned(self, job: str | None = None) -> Iterator[tuple[RunDir, int]]:
        """Be the folder's one writer while the block runs; see ``OwnedFolder.claim``.

        Gives the folder to write by, and the attempt's number.

        Raises:
            Refused: somebody else is writing here now.
        """
        metrics = self.root / "metrics.jsonl"
        with writable(self.root), self.locked():
            mine = self.claim(job)
            attempt = 1 + max((int(p.name) for p in self.attempts()), default=0)
            self.attempt_folder(attempt).mkdir()
            # Else the next record is glued to a line torn by a kill, and both are lost.
            if (read_whole(metrics) or b"\n")[-1:] != b"\n":
                with open(metrics, "a", encoding="utf-8", opener=plain_file) as file:
                    file.write("\n")
        try:
            yield mine, attempt
        finally:
            mine.leave()

    def attempts(self) -> list[Path]:
        """The folders of this run's attempts, oldest first."""
        return sorted(p for p in (self.root / "attempts").glob("[0-9]*") if p.is_dir())

    def attempt_folder(self, attempt: int) -> Path:
        """The folder of one attempt."""
        return self.root / "attempts" / f"{attempt:03d}"

    def environments(self) -> list[Attempt]:
        """What each attempt ran on, but for those that did not come so far or are damaged."""
        found = (self.record(Attempt, one / "environment.json") for one in self.attempts())
        return [one for one in found if one is not None]

    def write_environment(self, attempt: int, environment: Attempt) -> None:
        """Record what an attempt runs on."""
        write_json(self.attempt_folder(attempt) / "environment.json", environment.as_json())

    def status(self) -> Status:
        """The run's state as its writer last reported it; ``waiting`` before, or if damaged."""
        found = self.record(Status, self.root / "status.json")
        return found if found and "state" in found.model_fields_set else Status()

    def write_status(self, status: Status) -> None:
        """Replace the state, with a heartbeat of now."""
        now = status.model_copy(update={"heartbeat": time.time()})
        with self.writing():
            write_json(self.root / "status.json", now.as_json())

    def change_state(
        self, state: State, *, cause: str | None = None, message: str | None = None
    ) -> None:
        """Replace the state that another process left; what is not given stays as it is."""
        given = {"state": state, "cause": cause, "message": message}
        update = {key: text for key, text in given.items() if text is not None}
        self.write_status(self.status().model_copy(update=update))

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record; it needs ``epoch`` and ``attempt``."""
        path = self.root / "metrics.jsonl"
        with (
            self.writing(),
            writable(self.root),
            open(path, "a", encoding="utf-8", opener=plain_file) as file,
        ):
            file.write(json.dumps(record, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The records, one per epoch in order; a torn line is left out, and what is no number.

        Raises:
            ConfigError: the file is there but cannot be read.
        """
        path = self.root / "metrics.jsonl"
        try:
            content = read_whole(path) or b""
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror}); move the run's folder away"
            ) from None
        by_epoch: dict[int, dict[str, Any]] = {}
        for line in content.decode("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, ArithmeticError):
                every = dict(from_json(line)).items()
                record: dict[str, Any] = {k: v for k, v in every if isinstance(v, NUMBER)}
                by_epoch[int(record["epoch"])] = record
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def result(self) -> Result | None:
        """How the run ended, or None while it has not.

        Raises:
            ConfigError: the file is there but cannot be read, or holds impossible values.
        """
        path = self.root / "result.json"
        try:
            content = read_whole(path)
            return None if content is None else Result.read(content)
        except (OSError, ConfigError) as error:
            mistake = error if isinstance(error, ConfigError) else "is unreadable"
            raise ConfigError(
                f"{path}: {mistake}; move the run's folder away and run it again"
            ) from None

    def write_result(self, result: Result) -> None:
        """End the run. Written once."""
        with self.writing():
            write_json(self.root / "result.json", result.as_json())

    def reopen(self) -> None:
        """Lay aside the result of a run that was stopped early: it is trained to its end then."""
        (self.root / "result.json").replace(self.attempts()[-1] / "result.json")

    @property
    def reopened(self) -> bool:
        """Whether that was done: no rule stops the run again."""
        return any((one / "result.json").exists() for one in self.attempts())

    def write_correct(self, right: npt.NDArray[np.uint8]) -> None:
        """Record per-image correctness: 1 or 0 for each test image, in the data set's order."""
        with self.writing():
            write_whole(self.correct_bits, by_image.packed(right))

    def write_seen(self, picture: bytes) -> None:
        """Keep a picture of what the network finds."""
        with self.writing():
            write_whole(self.seen_file, picture)

    def write_image_scores(self, scores: npt.NDArray[np.float32]) -> None:
        """Record one number for each test image, in the data set's order."""
        with self.writing():
            write_whole(self.image_scores_file, by_image.kept(scores))

    def image_scores(self, images: int | None) -> bytes:
        """Read them as bytes of float32; ``images`` and errors as of ``correct``."""
        return by_image.scores(self.image_scores_file, images)

    def correct(self, images: int | None) -> bytes:
        """Read per-image correctness: packed bits, the first of eight images highest.

        Args:
            images: how many test images there should be.

        Raises:
            ValueError: the file cannot be read, or is about another number of images.
        """
        return by_image.bits(self.correct_bits, images)


def identity_of(name: str) -> str:
    """The identity at the end of a run folder's name."""
    return name.rsplit("-", 1)[-1]


def runs_folder(results: Path, tier: str) -> Path:
    """Where the runs of a tier lie under a results folder."""
    return results / tier / "runs"


def run_folders(results: Path, tier: str) -> list[RunDir]:
    """All run folders of a tier by name, but for links that another user made."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder = runs_folder(results, tier)
        with os.scandir(folder) as found:
            listed = sorted(
                one.name
                for one in found
                if "-" in one.name and not (one.is_symlink() and foreign_link(one.path))
            )
        return [RunDir(folder / name) for name in listed]
    return []


def existing(results: Path, tier: str, twice: list[str] | None = None) -> dict[str, RunDir]:
    """The run folders of a tier by identity, whatever variant first asked for them.

    Args:
        twice: is given a message for each run of which there are several folders, as after a copy;
            none of them counts then.

    Raises:
        Refused: there are several folders of a run, and ``twice`` is None.
    """
    found: dict[str, list[RunDir]] = {}
    for folder in run_folders(results, tier):
        found.setdefault(folder.identity, []).append(folder)
    several = [
        f"{', '.join(str(one.root) for one in folders)}: {len(folders)} folders hold the same "
        "run; keep one of them there and move the others away"
        for folders in found.values()
        if len(folders) > 1
    ]
    if several and twice is None:
        raise Refused("\n".join(several))
    if twice is not None:
        twice += several
    return {identity: folders[0] for identity, folders in found.items() if len(folders) == 1}
