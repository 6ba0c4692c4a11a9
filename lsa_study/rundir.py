"""A run on disk. The only module that knows the names of the files in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError
from pydantic_core import from_json

from lsa_study.config.settings import SCHEMA_VERSION, Settings
from lsa_study.config.yaml import parse
from lsa_study.errors import ConfigError, Refused
from lsa_study.files import read_whole, writable, write_json, write_whole
from lsa_study.record import AnyRecord, Attempt, Result, State, Status, Writer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The C code writes the same language several times faster; not every build has it.
_Dumper: type[Any] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

STALE_SECONDS = 600.0
"""A writer on another host that has been silent this long is taken for dead."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder.

    ``config.yaml``            what was asked, resolved and sorted; written once, before training
    ``owner.json``             who writes here now (host, process, job); removed on leaving
    ``status.json``            state, cause, epoch, step, heartbeat, attempt; replaced whole
    ``metrics.jsonl``          one line per epoch with its attempt; append only, the last line of
                               an epoch wins
    ``result.json``            final metrics; a run has ended if and only if this file exists
    ``correct.npz``            one bit per test image: was it classified rightly
    ``checkpoint/last.pt``     where to resume; ``previous.pt`` stands in when it is torn
    ``checkpoint/weights.safetensors``  final weights
    ``attempts/001/``          log and environment of each attempt
    ``tracking/wandb/``        what a tracker shows of all this; can be made again
    """

    root: Path

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
    def tracking(self) -> Path:
        """Folders of experiment trackers by their name: copies of the metrics, never read."""
        return self.root / "tracking"

    def sibling(self, identity: str) -> RunDir | None:
        """The run of another identity at the same tier, whatever row first asked for it."""
        return next((RunDir(path) for path in self.root.parent.glob(f"*-{identity}")), None)

    def create(self, settings: Settings, *, variant: str, start: str | None = None) -> None:
        """Make the folder for these settings. Safe to call again after a preemption.

        Args:
            variant: the row that asked for it first.
            start: identity of the run whose weights it begins from, if it does.

        Raises:
            Refused: the folder already holds a run with other settings.
            EnvironmentLacks: the folder cannot be written.
        """
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
        } | ({} if start is None else {"start": start})
        with writable(self.root):
            for folder in (self.root, self.root / "checkpoint", self.root / "attempts"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            return Settings.model_validate(document["settings"])
        except ValidationError:
            raise self._no_config() from None

    @contextlib.contextmanager
    def owned(self, job: str | None = None) -> Iterator[int]:
        """Be the folder's one writer while the block runs; gives the attempt's number.

        Raises:
            Refused: somebody else is writing here now.
        """
        me = Writer(host=socket.gethostname(), pid=os.getpid(), job=job, start=time.time())
        path, metrics = self.root / "owner.json", self.root / "metrics.jsonl"
        with writable(self.root), self.locked():
            if (other := self.writer()) is not None:
                age = time.time() - (self.status().heartbeat or other.start)
                raise Refused(
                    f"{self.root.name}: is being written by {other.host} (process {other.pid}, "
                    f"job {other.job or '-'}, {age:.0f} s ago); wait for it, or cancel it"
                )
            write_json(path, me.as_json())
            attempt = 1 + max((int(p.name) for p in self.attempts()), default=0)
            self.attempt_folder(attempt).mkdir(mode=0o700)
            # Else the next record is glued to a line torn by a kill, and both are lost.
            if (read_whole(metrics) or b"\n")[-1:] != b"\n":
                with metrics.open("a", encoding="utf-8") as file:
                    file.write("\n")
        try:
            yield attempt
        finally:
            with self.locked():
                if self._record(Writer, path) == me:
                    path.unlink(missing_ok=True)

    def writer(self) -> Writer | None:
        """Who writes here now; None when nobody does any more."""
        owner = self._record(Writer, self.root / "owner.json")
        if owner is None:
            return None
        if owner.host == socket.gethostname():
            alive = _process_started(owner.pid) <= owner.start
        else:
            alive = time.time() - (self.status().heartbeat or owner.start) < STALE_SECONDS
        return owner if alive else None

    @contextlib.contextmanager
    def locked(self, tracker: str | None = None) -> Iterator[None]:
        """Be the one that changes the owner, or a tracker's copy; waits for the one before."""
        with (self.root / f"{'' if tracker is None else '.' + tracker}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _record(self, kind: type[AnyRecord], path: Path) -> AnyRecord | None:
        """What a file records; None if it is not there, or damaged."""
        with contextlib.suppress(OSError, ConfigError):
            return kind.read(read_whole(path) or b"")
        return None

    def attempts(self) -> list[Path]:
        """The folders of this run's attempts, oldest first."""
        return sorted(p for p in (self.root / "attempts").glob("[0-9]*") if p.is_dir())

    def attempt_folder(self, attempt: int) -> Path:
        """The folder of one attempt."""
        return self.root / "attempts" / f"{attempt:03d}"

    def environment(self, attempt: int) -> Attempt | None:
        """What an attempt ran on; None if it did not come so far, or the file is damaged."""
        return self._record(Attempt, self.attempt_folder(attempt) / "environment.json")

    def write_environment(self, attempt: int, environment: Attempt) -> None:
        """Record what an attempt runs on."""
        write_json(self.attempt_folder(attempt) / "environment.json", environment.as_json())

    def status(self) -> Status:
        """The run's state as its writer last reported it; ``waiting`` before, or if damaged."""
        found = self._record(Status, self.root / "status.json")
        return found if found and "state" in found.model_fields_set else Status()

    def write_status(self, status: Status) -> None:
        """Replace the state, with a heartbeat of now."""
        now = status.model_copy(update={"heartbeat": time.time()})
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
        with writable(self.root), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The records, one per epoch in order; a torn last line is left out."""
        content = read_whole(self.root / "metrics.jsonl") or b""
        by_epoch: dict[int, dict[str, Any]] = {}
        for line in content.decode("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, ArithmeticError):
                record = from_json(line)
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
        write_json(self.root / "result.json", result.as_json())

    def write_correct(self, right: npt.NDArray[np.uint8]) -> None:
        """Record per-image correctness: 1 or 0 for each test image, in the data set's order."""
        import numpy as np

        content = io.BytesIO()
        np.savez(content, bits=np.packbits(right), count=np.int64(len(right)))
        write_whole(self.correct_bits, content.getvalue())

    def correct(self, images: int | None) -> bytes:
        """Read per-image correctness: packed bits, the first of eight images highest.

        Args:
            images: how many test images there should be.

        Raises:
            ValueError: the file cannot be read, or is about another number of images.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(self.correct_bits.read_bytes())) as file:
                bits, counts = (_array(file.read(f"{name}.npy")) for name in ("bits", "count"))
            count = int(counts[0])
        except Exception:  # NumPy and zipfile raise a dozen kinds, by where the damage is.
            raise ValueError(f"{self.correct_bits}: is unreadable") from None
        if count != images or len(bits) != -(-count // 8):
            raise ValueError(f"{self.correct_bits}: holds {count} images, the result says {images}")
        return bits.tobytes()


def _array(content: bytes) -> npt.NDArray[Any]:
    import numpy as np

    # NumPy evaluates Python to read a header, which takes most of the time of np.load.
    kind = re.match(rb"\x93NUMPY\x01.{3}\{'descr': '([<|][iu]\d)'", content, re.DOTALL)
    if kind is None:
        raise ValueError("not an array of whole numbers")
    return np.frombuffer(content, kind[1].decode(), offset=content.index(b"\n", 10) + 1)


def runs_folder(results: Path, tier: str) -> Path:
    """Where the runs of a tier lie under a results folder."""
    return results / tier / "runs"


def existing(results: Path, tier: str) -> dict[str, RunDir]:
    """The run folders of a tier by identity, whatever variant first asked for them."""
    folder = runs_folder(results, tier)
    if not folder.is_dir():
        return {}
    names = (entry.name for entry in os.scandir(folder) if "-" in entry.name)
    return {name.rsplit("-", 1)[1]: RunDir(folder / name) for name in names}


def _process_started(pid: int) -> float:
    # A process id is used again: only its start time tells the writer from a later stranger.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, IndexError):
        return float("inf")
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK") - 1.0
