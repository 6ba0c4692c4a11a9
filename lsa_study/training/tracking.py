"""A mirror of one run in TensorBoard, Weights & Biases or trackio.

``python -m lsa_study.training.tracking RUN_DIR`` accompanies one life of a run: a line on standard
input says that there may be a new record, its end that the life is over. It is a process of its
own, because trackers start threads, catch signals and keep the first folder they were given; so
none of that reaches the training, and none of their failures. What is in ``metrics.jsonl`` is the
truth: the mirror is made anew from it at every start, and never read. Nothing needs a network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lsa_study.config.settings import flatten
from lsa_study.errors import EnvironmentLacks
from lsa_study.rundir import RunDir

PROJECT = "lsa_study"

PATIENCE_SECONDS = 120
"""A tracker that takes longer over anything is taken for stuck; importing one takes seconds."""

Plain = bool | int | float | str


class TrackerLacks(EnvironmentLacks):
    """The tracker that was asked for is not installed."""


def installed(tracker: str) -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec(tracker) is not None


def require(tracker: str) -> None:
    """Look whether a tracker of ``runtime.tracker`` can be used.

    Raises:
        TrackerLacks: its package is not installed.
    """
    if tracker != "none" and not installed(tracker):
        raise TrackerLacks(
            f"runtime.tracker={tracker!r}: the package is not installed; "
            f"pip install 'lsa_study[{tracker}]'"
        )


class Tracker(Protocol):
    """A curve that grows.

    Made from the run's folder and its settings; writes under ``RunDir.tracking`` only.
    """

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Add an epoch."""

    def close(self, result: Mapping[str, Plain]) -> None:
        """Add the final result, which is empty while there is none, and write what is left."""


class TensorBoard:
    """An event file; ``tensorboard --logdir results/TIER/runs`` shows all runs."""

    def __init__(self, run_dir: RunDir, settings: Mapping[str, Plain]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_config_pb, hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.epoch = 0
        self.writer = EventFileWriter(str(run_dir.tracking))
        self._add(hparams_config_pb(hparams=[], metrics=[Metric("acc1"), Metric("loss")]))
        self._add(hparams_pb(dict(settings), trial_id=run_dir.root.name))

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Add an epoch's scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.epoch = epoch
        values = [Summary.Value(tag=name, simple_value=n) for name, n in numbers.items()]
        self._add(Summary(value=values))
        self.writer.flush()

    def close(self, result: Mapping[str, Plain]) -> None:
        """Add the result as text: it holds words as well as numbers."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        if result:
            self._add(text_pb("result", "\n".join(f"    {k}: {v}" for k, v in result.items())))
        self.writer.close()

    def _add(self, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(summary=summary, step=self.epoch, wall_time=time.time()))


class WandB:
    """An offline run; ``wandb sync`` on its folder uploads it, if somebody wishes."""

    def __init__(self, run_dir: RunDir, settings: Mapping[str, Plain]) -> None:
        folder = str(run_dir.tracking)
        local = {f"WANDB_{name}_DIR": folder for name in ("CACHE", "CONFIG", "DATA")}
        os.environ.update(local, WANDB_ERROR_REPORTING="false")
        import wandb

        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip
        self.run = wandb.init(
            mode="offline", dir=folder, project=PROJECT, name=run_dir.root.name,
            id=str(settings["identity"]), config=dict(settings), settings=quiet,
        )  # fmt: skip

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Add an epoch as a step."""
        self.run.log(dict(numbers), step=epoch)

    def close(self, result: Mapping[str, Plain]) -> None:
        """Add the result to the summary."""
        self.run.summary.update({f"result/{key}": value for key, value in result.items()})
        self.run.finish()


class Trackio:
    """An SQLite file; ``TRACKIO_DIR=RUN_DIR/tracking trackio show`` shows it."""

    def __init__(self, run_dir: RunDir, settings: Mapping[str, Plain]) -> None:
        os.environ.update(TRACKIO_DIR=str(run_dir.tracking), HF_HUB_OFFLINE="1")
        import trackio

        self.epoch = 0
        self.run = trackio.init(
            project=PROJECT, name=run_dir.root.name, config=dict(settings), embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Add an epoch as a step."""
        self.epoch = epoch
        self.run.log(dict(numbers), step=epoch)

    def close(self, result: Mapping[str, Plain]) -> None:
        """Add the result at the last epoch."""
        if result:
            values = {f"result/{key}": value for key, value in result.items()}
            self.run.log(values, step=self.epoch)
        self.run.finish()


TRACKERS: dict[str, Callable[[RunDir, Mapping[str, Plain]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
"""``runtime.tracker`` -> what writes it. The names are those of the packages."""


def plain(values: Mapping[str, Any]) -> dict[str, Plain]:
    """Values as every tracker takes them: lists and nulls as JSON."""
    return {k: v if isinstance(v, Plain) else json.dumps(v) for k, v in values.items()}


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """A record without its epoch and its nulls; ``step`` is a word of the trackers' own."""
    found = {"steps" if k == "step" else k: v for k, v in record.items() if k != "epoch"}
    return {key: value for key, value in found.items() if value is not None}


class Copy:
    """What a tracker was given of a run's records."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        config = run_dir.config()
        self.make = TRACKERS[config["settings"]["runtime"]["tracker"]]
        named = {key: config[key] for key in ("variant", "identity")}
        self.settings = plain(named | flatten(config["settings"]))
        self.given: list[dict[str, Any]] = []
        self.tracker = self._anew()

    def _anew(self) -> Tracker:
        shutil.rmtree(self.run_dir.tracking, ignore_errors=True)
        self.run_dir.tracking.mkdir(mode=0o700)
        return self.make(self.run_dir, self.settings)

    def update(self) -> None:
        """Give the tracker what it lacks; trackers only add, so a replaced epoch means all."""
        records = self.run_dir.metrics()
        if records[: len(self.given)] != self.given:
            self.tracker.close({})
            self.tracker, self.given = self._anew(), []
        for record in records[len(self.given) :]:
            self.tracker.log(record["epoch"], numbers(record))
        self.given = records

    def close(self) -> None:
        """Give it the last and the result."""
        self.update()
        result = self.run_dir.result()
        facts = {} if result is None else result.as_json()
        self.tracker.close(plain({k: v for k, v in facts.items() if v is not None}))


def main(folder: Path) -> None:
    """Mirror a run until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # A whole job is told to stop; the training then says when it has.
        signal.signal(number, signal.SIG_IGN)
    run_dir = RunDir(folder)
    signal.alarm(PATIENCE_SECONDS)
    with run_dir.tracked():
        copy = Copy(run_dir)
        copy.update()
        signal.alarm(0)
        while os.read(sys.stdin.fileno(), 4096):
            signal.alarm(PATIENCE_SECONDS)
            copy.update()
            signal.alarm(0)
        signal.alarm(PATIENCE_SECONDS)
        copy.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
