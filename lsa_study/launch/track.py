"""Experiment trackers read run folders: ``lsa track``, and what goes beside a run that asks for it.

Each run has a process of its own, ``python -m lsa_study.launch.track RUN_DIR TRACKER FLAGS``, which
ends with its standard input: trackers start threads, catch signals and keep the first folder they
were given; neither that nor a failure of theirs reaches the training. ``metrics.jsonl`` is the
truth: a tracker's copy is made anew from it at every start, and never read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsa_study.config.names import nearest
from lsa_study.config.settings import flatten
from lsa_study.config.task import OF_TASK, curve_key
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.files import last_lines, writable
from lsa_study.launch.records import chosen_runs
from lsa_study.rundir import RunDir

PATIENCE_SECONDS = 120
"""A tracker that takes longer over anything is taken for stuck; importing one takes seconds."""

POLL_SECONDS = 2.0

QUIET_SECONDS = 10.0
"""If no run has begun for so long after the last one ended, none will."""

AT_ONCE = 32
"""Runs mirrored at the same time, each by a process of about 150 MB."""

ELSEWHERE = ("WANDB_", "TRACKIO_")
"""Beginnings of variables that could lead a tracker to a server or another folder."""

PROJECT = "lsa_study"

Values = Mapping[str, Any]
"""By name: numbers and text, as every tracker takes them."""


class Curve(NamedTuple):
    """How a tracker's curve of a run grows."""

    log: Callable[[int, Values], None]
    """Add an epoch."""
    close: Callable[[int, Values], None]
    """Add the result at the last epoch, if there is one, and write what is left."""


def require(tracker: str) -> None:
    """Check that a tracker of ``runtime.tracker`` can be used; it is not imported.

    Raises:
        EnvironmentLacks: its package is not installed.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise EnvironmentLacks(
            f"runtime.tracker={tracker!r}: the package is not installed; "
            f"pip install 'lsa_study[{tracker}]'",
            cause="import",
        )


# -- the trackers --------------------------------------------------------------------------------


def _tensorboard(folder: Path, settings: Values, flags: Values) -> Curve:
    """An event file; ``tensorboard --logdir results/TIER/runs`` shows all runs."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_config_pb, hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))

    def add(epoch: int, summary: Any) -> None:
        writer.add_event(Event(summary=summary, step=epoch, wall_time=time.time()))

    def log(epoch: int, numbers: Values) -> None:
        scalars = [Summary.Value(tag=name, simple_value=n) for name, n in numbers.items()]
        add(epoch, Summary(value=scalars))
        writer.flush()

    def close(epoch: int, result: Values) -> None:
        if result:  # as text, which it holds as well as numbers
            lines = "\n".join(f"    {key}: {value}" for key, value in result.items())
            add(epoch, text_pb("result", lines))
        writer.close()

    judged = map(curve_key, OF_TASK[str(settings.get("task.kind", "classify"))])
    add(0, hparams_config_pb(hparams=[], metrics=[Metric(name) for name in (*judged, "loss")]))
    add(0, hparams_pb(dict(settings), trial_id=folder.parents[1].name))
    return Curve(log, close)


def _wandb(folder: Path, settings: Values, flags: Values) -> Curve:
    """A run of Weights & Biases; ``wandb sync`` uploads the folder of one that is offline."""
    local = {f"WANDB_{name}_DIR": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
    os.environ.update(local, WANDB_ERROR_REPORTING="false")
    import wandb

    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    )  # fmt: skip
    run = wandb.init(
        **{"mode": "offline", "project": PROJECT, **flags}, dir=str(folder),
        name=folder.parents[1].name, id=settings["identity"], config=dict(settings),
        settings=quiet,
    )  # fmt: skip

    def close(epoch: int, result: Values) -> None:
        run.summary.update({f"result/{key}": value for key, value in result.items()})
        run.finish()

    return Curve(lambda epoch, numbers: run.log(dict(numbers), step=epoch), close)


def _trackio(folder: Path, settings: Values, flags: Values) -> Curve:
    """An SQLite file; ``TRACKIO_DIR=RUN_DIR/tracking/trackio trackio show`` shows it."""
    os.environ.update(TRACKIO_DIR=str(folder), HF_HUB_OFFLINE="1")
    import trackio

    run = trackio.init(
        project=PROJECT, name=folder.parents[1].name, config=dict(settings), embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip

    def close(epoch: int, result: Values) -> None:
        if result:
            run.log({f"result/{key}": value for key, value in result.items()}, step=epoch)
        run.finish()

    return Curve(lambda epoch, numbers: run.log(dict(numbers), step=epoch), close)


TRACKERS: dict[str, Callable[[Path, Values, Values], Curve]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""``runtime.tracker`` -> what begins a curve in RUN_DIR/tracking/TRACKER, from settings and flags.

The names are those of the packages.
"""


# -- the process of one run ----------------------------------------------------------------------


def main(run_dir: RunDir, tracker: str, flags: Values) -> None:
    """Mirror a run until standard input ends or holds something."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # A whole job gets the signal to stop; the training then says when it has.
        signal.signal(number, signal.SIG_IGN)
    curve: Curve | None = None
    given: list[dict[str, Any]] = []
    over = False
    signal.alarm(PATIENCE_SECONDS)
    with run_dir.locked(tracker):
        while True:
            records = run_dir.metrics()
            if curve is None or records[: len(given)] != given:
                # Trackers only add, so an epoch that was done again means all of them.
                if curve is not None:
                    curve.close(len(given), {})
                folder, config = run_dir.tracking / tracker, run_dir.config()
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
                named = {key: config[key] for key in ("variant", "identity")}
                settings = _plain(named | flatten(config["settings"]))
                curve, given = TRACKERS[tracker](folder, settings, flags), []
            for record in records[len(given) :]:
                # "step" is a name of the trackers' own.
                values = {"steps" if k == "step" else k: record[k] for k in record if k != "epoch"}
                curve.log(record["epoch"], {k: v for k, v in values.items() if v is not None})
            given = records
            if over:
                break
            signal.alarm(0)
            over = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
            signal.alarm(PATIENCE_SECONDS)
        result = run_dir.result()
        known = {} if result is None else result.as_json()
        curve.close(len(given), _plain({k: v for k, v in known.items() if v is not None}))


def _plain(values: Mapping[str, Any]) -> Values:
    """Lists and nulls as JSON."""
    plain = (bool, int, float, str)
    return {k: v if isinstance(v, plain) else json.dumps(v) for k, v in values.items()}


class Mirror:
    """That process, seen from outside.

    Args:
        flags: of wandb's ``init``.
        follow: go on until ``stop``; else do what there is.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, run_dir: RunDir, tracker: str, flags: Values, *, follow: bool) -> None:
        self.run_dir = run_dir
        run_dir.tracking.mkdir(mode=0o700, exist_ok=True)
        self.printed = run_dir.tracking / f"{tracker}.txt"
        online = flags.get("mode") == "online"
        kept = {k: v for k, v in os.environ.items() if online or not k.startswith(ELSEWHERE)}
        given = [str(run_dir.root.absolute()), tracker, json.dumps(flags)]
        with self.printed.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lsa_study.launch.track", *given],
                stdin=subprocess.PIPE if follow else subprocess.DEVNULL, stdout=file, stderr=file,
                bufsize=0, env=kept, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """Let it end once it has the last records; if need be, its own alarm ends it."""
        if self.process.stdin is not None:
            # A byte, because processes forked since may keep the pipe open. It may be closed.
            with contextlib.suppress(OSError, ValueError), self.process.stdin as pipe:
                pipe.write(b"\n")

    def ended(self) -> bool:
        """Whether it has ended; a run that has ended needs no mirror any more."""
        if self.run_dir.result() is not None or self.run_dir.status().state == "failed":
            self.stop()
        return self.process.poll() is not None

    def wait(self) -> str | None:
        """Wait for its end; returns what was wrong."""
        code = self.process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {PATIENCE_SECONDS} s, or another process mirrors it too"
        if code < 0:
            return f"ended by signal {signal.Signals(-code).name}"
        last = last_lines(self.printed) or [f"code {code}"]
        return last[-1].strip() if code else None


# -- who starts it -------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(run_dir: RunDir, say: Callable[[str], object]) -> Iterator[None]:
    """While the block trains a run, mirror it as its ``runtime.tracker`` asks.

    A mirror that failed is one line at the end, for ``say`` and in the attempt's log.

    Raises:
        EnvironmentLacks: the tracker is not installed.
    """
    tracker = run_dir.settings().runtime.tracker
    if tracker == "none":
        yield
        return
    require(tracker)
    mirror, wrong = None, None
    try:
        mirror = Mirror(run_dir, tracker, {}, follow=True)
    except OSError as error:
        wrong = str(error)
    try:
        yield
    finally:
        if mirror is not None:
            mirror.stop()
            wrong = mirror.wait()
        if wrong is not None:
            line = (
                f"runtime.tracker={tracker!r}: mirrors no more ({wrong}); metrics.jsonl has "
                f"everything, and lsa track {run_dir.root.name} mirrors it anew"
            )
            say(line)
            for attempt in run_dir.attempts()[-1:]:
                place = attempt / "log.txt"
                with contextlib.suppress(OSError), place.open("a", encoding="utf-8") as log:
                    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def track(
    results: Path, names: Sequence[str], tell: Callable[[str], object], *,
    tier: str | None = None, follow: bool = False, tracker: str | None = None,
    flags: Values | None = None,
) -> bool:  # fmt: skip
    """Mirror runs; tells where each can be seen, or why it cannot.

    Args:
        names: studies, beginnings of runs' names or identities, or run folders.
        follow: go on until all runs have ended, those included that begin meanwhile.
        tracker: of ``TRACKERS``; None: each run's ``runtime.tracker``, or TensorBoard.
        flags: of wandb's ``init``: mode, project, entity, group, tags.

    Returns:
        Whether all were mirrored.

    Raises:
        ConfigError: there are no such runs, or no such tracker, or it takes no such flags.
        EnvironmentLacks: a tracker is not installed.
    """
    seen: set[Path] = set()
    mirrors: list[Mirror] = []
    good, until = True, 0.0
    try:
        while True:
            new = [run for run in _runs(results, names, tier) if run.root not in seen]
            if not new and not seen:
                raise ConfigError(f"{' '.join(names)}: no runs under {results} yet")
            for run in new[: AT_ONCE - len(mirrors)]:
                seen.add(run.root)
                of_run = _tracker_of(run, tracker, flags or {})
                with writable(run.root):
                    mirrors.append(Mirror(run, of_run, flags or {}, follow=follow))
            for mirror in [one for one in mirrors if one.ended()]:
                mirrors.remove(mirror)
                wrong = mirror.wait()
                good &= wrong is None
                where = mirror.printed.with_suffix("") if wrong is None else f"failed ({wrong})"
                tell(f"{mirror.run_dir.root.name}: {where}")
            if mirrors or new:
                until = time.monotonic() + QUIET_SECONDS * follow
            elif time.monotonic() >= until:
                return good
            time.sleep(1.0)
    finally:
        for mirror in mirrors:
            mirror.stop()
        for mirror in mirrors:
            mirror.wait()


def _runs(results: Path, names: Sequence[str], tier: str | None) -> list[RunDir]:
    folders = [name for name in names if (Path(name) / "config.yaml").is_file()]
    others = [name for name in names if name not in folders]
    found = [run.folder for run in chosen_runs(results, others, tier)] if others else []
    # A folder is there a moment before its configuration is.
    whole = [run for run in found if (run.root / "config.yaml").is_file()]
    return [*(RunDir(Path(name)) for name in folders), *whole]


def _tracker_of(run_dir: RunDir, asked: str | None, flags: Values) -> str:
    hint = run_dir.settings().runtime.tracker
    tracker = asked or ("tensorboard" if hint == "none" else hint)
    if tracker not in TRACKERS:
        raise ConfigError(f"--tracker {tracker}: no such tracker; {nearest(tracker, TRACKERS)}")
    if flags and tracker != "wandb":
        raise ConfigError(
            f"--mode, --project, --entity, --group and --tag are for wandb, not for {tracker}; "
            "leave them out, or add --tracker wandb"
        )
    require(tracker)
    return tracker


if __name__ == "__main__":
    main(RunDir(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3]))
