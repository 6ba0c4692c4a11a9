"""The training loop: epochs of steps, evaluation, checkpoints at step boundaries."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, schedule

from lsa_study.config.task import OF_TASK
from lsa_study.data import DataLacks
from lsa_study.data.sampler import EpochSampler
from lsa_study.data.sets import beside
from lsa_study.files import replacing
from lsa_study.training import checkpoint, environment, tasks
from lsa_study.training.distributed import Distributed
from lsa_study.training.evaluate import Report, numbers
from lsa_study.training.monitor import Monitor
from lsa_study.training.step import Stepper
from lsa_study.training.stop_rule import GivenUp, why_given_up

GPU_CHECK_STEPS = 50
"""On a GPU, looking at a loss waits for all queued work; so look now and then."""

VOTE_SECONDS = 1.0
"""About so often several processes agree whether to stop, and whether one has failed; after
``GPU_CHECK_STEPS`` steps at the latest. All count the same steps until then."""

LEAST_SCALE = 1.0
"""Below this loss scale float16 overflows without any scaling: the run has diverged."""

TRACE_WARM_UP = 3
"""Steps that a trace leaves out: the first ones allocate, compile and fill caches."""


class Diverged(Exception):
    """A loss was not finite: a result. The text says epoch, step and learning rate."""


class Stopped(Exception):
    """Somebody asked to stop; the state is saved."""


@dataclass
class Progress:
    """How far a run is: all that a later attempt needs beside the weights.

    Counts are of whole things done: epochs from 0, steps in the running epoch from 0.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the running epoch, over images."""
    lost: int = 0
    """Steps of the running epoch whose loss overflowed; they are not in ``loss_sum``."""
    epoch_seconds: float = 0.0
    """Training time of the running epoch."""
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """Training and evaluation, all attempts; of this process, NaN if one did not count them."""
    peak_memory: int = 0
    fingerprint: str = ""
    """Of the data the run began with."""
    start: str | None = None
    """What its weights began from, if not at random."""
    last: Report = field(default_factory=Report)
    best: Report = field(default_factory=Report)
    best_weights: dict[str, Tensor] | None = None
    """Kept where the best epoch is reported."""

    def plain(self) -> dict[str, Any]:
        """As dicts of tensors and plain values, for a checkpoint."""
        return {**vars(self), "last": vars(self.last), "best": vars(self.best)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The reverse of ``plain``."""
        reports = {key: Report(**values[key]) for key in ("last", "best")}
        return cls(**{"processor_seconds": math.nan, **values, **reports})


class Trainer:
    """One attempt of a run, from where the last checkpoint stands to the last epoch."""

    def __init__(
        self,
        monitor: Monitor,
        stop: Callable[[], bool],
        ranks: Distributed,
        model: nn.Module,
        sets: Any,
    ) -> None:
        self.monitor, self.stop, self.ranks, self.sets = monitor, stop, ranks, sets
        self.run_dir, self.settings, self.device = monitor.run_dir, monitor.settings, sets.device
        self.task = tasks.of(self.settings)
        self.progress = Progress(fingerprint=sets.source.fingerprint)
        self.held_out = sets.source.held_out > 0
        self.steps = self._plan().steps
        self.stepper = Stepper(self.settings, model.to(self.device), ranks, steps=self.steps)
        self._unread: list[tuple[int, Tensor]] = []

    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: weights, two moments, averaged and best weights."""
        averaged = self.settings.train.ema_decay is not None
        copies = 3 + averaged + (self.settings.evaluation.epoch == "best")
        return copies * sum(int(one.nbytes) for one in self.stepper.model.state_dict().values())

    def resume(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint stands.

        Raises:
            DataLacks: the data are not those the run began with.
        """
        try:
            progress = Progress.from_plain(state.pop("progress"))
            self.stepper.load_state_dict(state)
        except (TypeError, KeyError) as error:
            raise DataLacks(
                f"{self.run_dir.root}: its checkpoint was written by another version of this "
                f"code ({error}); finish the run with that version, or move the folder away to "
                "begin anew"
            ) from None
        if progress.fingerprint != self.sets.source.fingerprint:
            raise DataLacks(
                f"{self.run_dir.root}: was begun with data {progress.fingerprint}, found are "
                f"{self.sets.source.fingerprint}; bring back the old files, or move the folder "
                "away to begin anew"
            )
        self.progress = progress
        place = f"step {progress.step + 1}" if progress.step < self.steps else "its test"
        self.monitor.say(f"resumed at epoch {progress.epoch + 1}, {place}")

    def run(self) -> Report:
        """Train and evaluate all epochs that are left; returns what is to be reported.

        Raises:
            Diverged: a loss was not finite.
            Stopped: ``stop`` turned true; the state is saved.
            GivenUp: the stopping rule ended it; the state is saved.
        """
        self.monitor.begin(self._done())
        self.ranks.broadcast(self.stepper.weights())
        self.stepper.model.train()
        self._saved, self._noted = time.monotonic(), (time.monotonic(), time.process_time())
        steps = self.settings.runtime.trace_steps if self.ranks.first else 0
        recorder = None
        if steps:
            gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            recorder = profile(
                activities=[ProfilerActivity.CPU, *gpu], profile_memory=True,
                on_trace_ready=self._write_trace,
                schedule=schedule(wait=0, warmup=TRACE_WARM_UP, active=steps, repeat=1),
            )  # fmt: skip
        self._step_done = recorder.step if recorder else lambda: None
        try:
            with recorder or contextlib.nullcontext():
                while self.progress.epoch < self.settings.train.epochs:
                    self._end_epoch(self._train_epoch())
                    self._save()
                    self._give_up_if_behind()
                at, evaluation = self.progress, self.settings.evaluation
                chosen = at.best if evaluation.epoch == "best" else at.last
                if not self.held_out:
                    return chosen
                network = self.stepper.reported()
                if at.best_weights:
                    network.load_state_dict(at.best_weights)
                tested = self._evaluate(network, held_out=False)
                averaged = tested.acc1 if evaluation.weights == "ema" else None
                return replace(tested, epoch=chosen.epoch, ema_acc1=averaged)
        finally:
            self._note_costs()

    def _write_trace(self, recorded: profile) -> None:
        """Write a trace for Perfetto: once all its steps are done, or what there is at the end."""
        path = self.run_dir.attempt_folder(self.monitor.attempt) / "trace.json"
        with replacing(path) as part:
            recorded.export_chrome_trace(str(part))

    def final_weights(self) -> dict[str, Tensor]:
        """The weights of the epoch that is reported."""
        return self.progress.best_weights or self.stepper.reported().state_dict()

    # -- steps --------------------------------------------------------------------------------

    def _plan(self) -> EpochSampler:
        parts, mine = self.ranks.parts(self.settings.runtime.accumulate)
        at = self.progress
        plan: EpochSampler = self.sets.epoch(
            at.epoch, self.settings.train.batch_size, first_step=at.step, parts=parts, mine=mine
        )
        return plan

    def _train_epoch(self) -> float:
        """Do the steps that are left of this epoch; returns the epoch's mean training loss."""
        plan, at = self._plan(), self.progress
        batches = beside(self.sets.train(plan), self.device)
        before, begun = at.epoch_seconds, time.monotonic()
        self._voted, self._vote_at = (at.step, begun), at.step + 1
        for step in range(at.step, plan.steps):
            loss = self.stepper.train_step(at.epoch, step, batches)
            self._unread.append((step, loss))
            at.step = step + 1
            at.epoch_seconds = before + time.monotonic() - begun
            self._step_done()
            if self.ranks.count == 1 or at.step in (self._vote_at, plan.steps):
                self._between_steps(plan.batch)
            self._tick(f"step {at.step}/{self.steps}")
        return at.loss_sum / (max(1, plan.steps - at.lost) * plan.batch)

    def _look(self, batch: int) -> None:
        """Copy the losses of ``batch`` images each from the device; raise if the run has diverged.

        Without a loss scale that is a loss that is not finite; with one, a scale that has become
        useless.
        """
        at, unread, scaler = self.progress, self._unread, self.stepper.scaler
        losses = torch.stack([loss for _, loss in unread]).tolist() if unread else []
        hopeless = not scaler.is_enabled() or scaler.get_scale() < LEAST_SCALE
        for (step, _), loss in zip(unread, losses, strict=True):
            if math.isfinite(loss):
                at.loss_sum += loss * batch
                continue
            at.lost += 1
            if hopeless:
                self._diverged(step, f"training loss {loss}")
        if scaler.is_enabled() and hopeless:
            what = f"gradients overflow at a loss scale of {scaler.get_scale():g}"
            self._diverged(at.step - 1, what)
        unread.clear()

    def _diverged(self, step: int, what: str) -> NoReturn:
        epoch, rate = self.progress.epoch, self.stepper.rate((self.progress.epoch, step))
        raise Diverged(f"epoch {epoch + 1}, step {step + 1}: {what} at lr {rate:.3g}")

    def _between_steps(self, batch: int) -> None:
        """Look, save and stop where that is due, in all processes at once."""
        stop, every = self._vote(), 1 if self.device.type == "cpu" else GPU_CHECK_STEPS
        due = time.monotonic() - self._saved >= self.settings.runtime.checkpoint_seconds
        if stop or due or len(self._unread) >= every or self.progress.step == self.steps:
            self._look(batch)
        if stop or due:
            self._save()
        if stop:
            raise Stopped

    def _vote(self) -> bool:
        """Whether any process is asked to stop; raises in all of them what one has failed of."""
        if self.ranks.count == 1:
            return self.stop()
        now, at, (step, then) = time.monotonic(), self.progress.step, self._voted
        # Whole numbers, whose sum is the same in all processes.
        each = round(1e6 * (now - then) / (at - step))
        failed, asked, total = self.ranks.totals(
            self.stepper.failed is not None, self.stop(), max(1, each)
        )
        if failed:
            self.ranks.raise_any(self.stepper.failed)
        seconds = total / self.ranks.count / 1e6
        self._voted = at, now
        self._vote_at = at + min(GPU_CHECK_STEPS, max(1, int(VOTE_SECONDS / seconds)))
        return asked > 0

    def _tick(self, doing: str) -> None:
        at = self.progress
        shown = f"epoch {at.epoch + 1}/{self.settings.train.epochs}  {doing}"
        if at.last.epoch:
            shown += f"  {at.last.shown}"
        self.monitor.beat(self._done(), shown, epoch=at.epoch, step=at.step)

    def _done(self) -> float:
        return self.progress.epoch + self.progress.step / self.steps

    # -- epochs -------------------------------------------------------------------------------

    def _evaluate(self, model: nn.Module, *, held_out: bool) -> Report:
        what = None
        try:
            report = self.task.evaluate(
                model, self.sets, precision=self.stepper.precision, ranks=self.ranks,
                tick=self._tick_or_stop, held_out=held_out,
            )  # fmt: skip
            if report.loss is not None and not math.isfinite(report.loss):
                what = f"test loss {report.loss}"
        except FloatingPointError as error:
            what = str(error)
        if what is not None:
            raise Diverged(
                f"epoch {self.progress.epoch + 1}, after step {self.steps}: {what} at lr "
                f"{self.stepper.rate():.3g}"
            )
        return report

    def _tick_or_stop(self) -> None:
        # All steps of the epoch are done: the next attempt begins with the evaluation.
        if self.ranks.count == 1 and self.stop():
            self._save()
            raise Stopped
        self._tick("testing")

    def _end_epoch(self, train_loss: float) -> None:
        at, begun, stepper = self.progress, time.monotonic(), self.stepper
        if not self.ranks.equal(stepper.weights()):
            raise RuntimeError(
                f"epoch {at.epoch + 1}: the weights of the processes are no longer equal; move the "
                "folder away to begin anew"
            )
        plain = chosen = self._evaluate(stepper.model, held_out=self.held_out)
        averaged = None
        if stepper.ema is not None:
            averaged = self._evaluate(stepper.ema.module, held_out=self.held_out)
        if averaged is not None and self.settings.evaluation.weights == "ema":
            chosen = averaged
        at.last = replace(
            chosen, epoch=at.epoch + 1, model_acc1=plain.acc1,
            ema_acc1=None if averaged is None else averaged.acc1,
            metrics=chosen.metrics | self._of_both(plain, averaged),
        )  # fmt: skip
        if at.best.epoch == 0 or at.last.score > at.best.score:
            at.best = at.last
            if self.settings.evaluation.epoch == "best":
                weights = stepper.reported().state_dict()
                at.best_weights = {name: w.cpu().clone() for name, w in weights.items()}
        self._record(train_loss, time.monotonic() - begun)
        at.epoch, at.step, at.loss_sum, at.lost, at.epoch_seconds = at.epoch + 1, 0, 0.0, 0, 0.0

    def _of_both(self, plain: Report, averaged: Report | None) -> dict[str, float | str]:
        """The task's metrics of the trained and of the averaged weights, if there are any."""
        pairs = (("model", plain), ("ema", averaged)) if averaged is not None else ()
        return {
            f"{whose}_{name}": report.metrics[name]
            for whose, report in pairs
            for name in OF_TASK[self.settings.task.kind]
            if report is not None and name in report.metrics
        }

    def _give_up_if_behind(self) -> None:
        if self.settings.runtime.stop is None:
            return
        reason = why_given_up(self.run_dir, self.settings) if self.ranks.first else None
        if self.ranks.any(reason is not None):
            raise GivenUp(reason)

    def _record(self, train_loss: float, seconds: float) -> None:
        if not self.ranks.first:
            return
        at, report = self.progress, self.progress.last
        speed = self.steps * self._plan().batch / at.epoch_seconds
        record: dict[str, Any] = {
            "epoch": report.epoch, "attempt": self.monitor.attempt,
            "step": report.epoch * self.steps, "lr": self.stepper.rate(),
            "train_loss": train_loss, "loss": report.loss, "acc1": report.acc1,
            "acc5": report.acc5, "model_acc1": report.model_acc1, "ema_acc1": report.ema_acc1,
            "seconds": at.epoch_seconds + seconds, "images_per_second": speed,
        }  # fmt: skip
        record |= {f"metrics.{name}": value for name, value in numbers(report).items()}
        if self.stepper.scaler.is_enabled():
            scale = self.stepper.scaler.get_scale()
            record |= {"skipped_steps": self.stepper.skipped, "loss_scale": scale}
        self.run_dir.log_metrics(record)
        left = self.monitor.eta(self._done())
        tested = ""
        if report.loss is not None:
            tested = f"{'held out' if self.held_out else 'test'} {report.loss:.4f}  "
        message = (
            f"epoch {report.epoch}/{self.settings.train.epochs}  loss {train_loss:.4f}  "
            f"{tested}{report.shown}  {speed:.{0 if speed >= 10 else 1}f} images/s"
        )
        if left is not None:
            message += f"  left {timedelta(seconds=round(left))}"
        self.monitor.epoch(message)
        self.monitor.status(
            "running", epoch=report.epoch, step=0, acc1=report.acc1, metrics=numbers(report),
            message=message, eta_seconds=left,
        )  # fmt: skip

    # -- saving -------------------------------------------------------------------------------

    def _note_costs(self) -> None:
        at, before = self.progress, self._noted
        now, used = self._noted = time.monotonic(), time.process_time()
        at.seconds += now - before[0]
        at.processor_seconds += used - before[1]
        at.peak_memory = max(at.peak_memory, environment.peak_memory(self.device))

    def _save(self) -> None:
        self._note_costs()
        if self.ranks.first:
            state = {**self.stepper.state_dict(), "progress": self.progress.plain()}
            checkpoint.save(self.run_dir, state)
            self.monitor.saved(self._done(), self.progress.epoch, self.progress.step)
        self._saved = time.monotonic()
