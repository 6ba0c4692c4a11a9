"""One life of a run: claim the folder, prepare, train, record how it ended."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from rich.console import Console
from torch import Tensor, nn

import lsa_kernels
from lsa_study import correct, data, measure, models
from lsa_study.config.settings import SCHEMA_VERSION, Settings
from lsa_study.data import DataLacks, rng
from lsa_study.data.sets import CHANNELS, Sets
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError
from lsa_study.files import write_whole
from lsa_study.record import Attempt, Facts, Outcome, Result
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint, distributed, environment, init_from
from lsa_study.training.distributed import PeerLost
from lsa_study.training.mirror import Mirror
from lsa_study.training.monitor import Monitor, Silent, job
from lsa_study.training.outcome import (
    DeviceLacks,
    Diverged,
    Stopped,
    is_out_of_memory,
)
from lsa_study.training.progress import Progress, Report
from lsa_study.training.tracking import TrackerLacks
from lsa_study.training.trainer import Life, Loop

CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (ConfigError, "config"),
    (DataLacks, "data"),
    (DeviceLacks, "node"),
    (PeerLost, "node"),
    (TrackerLacks, "import"),
    (EnvironmentLacks, "disk"),
    (ImportError, "import"),
    (MemoryError, "oom-host"),
)
"""What an error that ends a life says about its cause; anything else is a bug."""


def live(run_dir: RunDir, *, stop: Callable[[], bool], console: Console | None) -> str:
    """Train or resume a run; see ``lsa_study.training.train``."""
    settings = run_dir.settings()
    if (result := run_dir.result()) is not None:
        return _tidy(run_dir, result.outcome)
    with distributed.join() as us, contextlib.ExitStack() as stack:

        def claim() -> tuple[int, Silent]:
            if not us.first:
                return 0, Silent()
            attempt = stack.enter_context(run_dir.owned(job()))
            return attempt, stack.enter_context(Monitor(run_dir, settings, attempt, console))

        attempt, monitor = us.together(claim)
        tracker = settings.runtime.tracker if us.first else "none"
        mirror = stack.enter_context(Mirror(run_dir, attempt, tracker, monitor.say))
        return _Attempt(Life(run_dir, settings, attempt, monitor, mirror, stop, us)).carry_out()


def _tidy(run_dir: RunDir, outcome: Outcome) -> str:
    # A life that was killed right after it wrote the result left the rest undone.
    if outcome == "done":
        checkpoint.remove(run_dir)
    if run_dir.status().state != outcome:
        run_dir.change_state(outcome)
    return outcome


class _Attempt:
    """One life; remembers what it finds out, so that its end can be recorded wherever it comes."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.facts = Facts()
        self.device = torch.device("cpu")
        self.progress = Progress()

    def carry_out(self) -> str:
        """Prepare, train, record; returns the state the run is left in."""
        monitor = self.life.monitor
        try:
            return self._train()
        except Stopped:
            at = self.progress
            where = f"epoch {at.epoch}" + (f", step {at.step} of the next" if at.step else "")
            monitor.say(f"Stopping after this step... saved at {where}")
            monitor.status("stopped", epoch=at.epoch, step=at.step, message=f"saved at {where}")
            return "stopped"
        except KeyboardInterrupt:
            monitor.status("stopped", message="left at once; the last checkpoint stands")
            raise
        except Exception as error:
            return self._failed(error)

    def _train(self) -> str:
        life = self.life
        device = environment.choose_device(life.settings.runtime, local_rank=life.ranks.local)
        self.device = device
        environment.forget_peak_memory(device)
        with environment.deterministic(device):
            sets = life.ranks.together(lambda: data.load(life.settings, device=str(device)))
            model = build(life.settings, sets)
            self.facts = _facts(life, model, sets, device)
            try:
                loop = life.ranks.together(lambda: self._prepare(model, sets))
                loop.run()
            except Diverged as error:
                return self._end("diverged", str(error))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return self._end("oom", self._memory_words(error))
            self._write_outputs(loop.final_weights())
            return self._end("done", None)

    def _prepare(self, model: nn.Module, sets: Sets) -> Loop:
        self.life.mirror.open()
        state = checkpoint.load(self.life.run_dir)
        begun = None
        if state is None:
            begun = init_from.fill(model, self.life.run_dir, self.life.settings)
        loop = Loop(self.life, model, sets)
        loop.progress.start = begun
        self.progress = loop.progress
        checkpoint.need_space(self.life.run_dir, loop.checkpoint_bytes())
        if state is not None:
            loop.resume(state)
        self.progress = loop.progress
        return loop

    def _memory_words(self, error: RuntimeError) -> str:
        at, train = self.progress, self.life.settings.train
        parts = self.life.settings.runtime.accumulate
        first = str(error).splitlines()[0]
        return (
            f"epoch {at.epoch + 1}, step {at.step + 1}: out of memory at a batch of "
            f"{train.batch_size} in {parts} part{'s' * (parts > 1)} ({first}); "
            f"the same effective batch in less memory: runtime.accumulate={2 * parts}"
        )

    def _write_outputs(self, weights: dict[str, Tensor]) -> None:
        if not self.life.ranks.first:
            return
        checkpoint.save_weights(self.life.run_dir.weights, weights)
        bits = self._report().bits
        assert bits is not None
        write_whole(self.life.run_dir.correct_bits, correct.pack(bits.numpy()))

    def _report(self) -> Report:
        best = self.life.settings.evaluation.epoch == "best"
        return self.progress.best if best else self.progress.last

    def _end(self, outcome: Outcome, reason: str | None) -> str:
        if not self.life.ranks.first:
            return outcome
        run_dir, at, done = self.life.run_dir, self.progress, outcome == "done"
        report = self._report()
        epochs = report.epoch if done else at.epoch + 1
        memory = max(at.peak_memory, environment.peak_memory(self.device))
        run_dir.write_result(
            Result(
                **dict(self.facts),
                outcome=outcome,
                reason=reason,
                start=at.start,
                acc1=report.acc1 if done else None,
                acc5=report.acc5 if done else None,
                loss=report.loss if done else None,
                ema_acc1=report.ema_acc1 if done else None,
                best_acc1=at.best.acc1 if at.best.epoch else None,
                epoch=epochs,
                seconds=at.seconds,
                seconds_per_epoch=at.seconds / max(1, at.epoch),
                peak_memory_bytes=memory,
                attempts=len(run_dir.attempts()),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )
        if done:
            checkpoint.remove(run_dir)
        words = reason or f"acc1 {report.acc1:.2f} % after epoch {report.epoch}"
        self.life.monitor.say(f"{outcome}: {words}")
        self.life.monitor.status(outcome, epoch=at.epoch, step=at.step, message=words)
        return outcome

    def _failed(self, error: Exception) -> str:
        monitor = self.life.monitor
        cause = next((cause for kind, cause in CAUSES if isinstance(error, kind)), "bug")
        if not isinstance(error, LsaError):
            monitor.log("".join(traceback.format_exception(error)))
        words = str(error) if isinstance(error, LsaError) else f"{type(error).__name__}: {error}"
        monitor.say(words)
        # On a full disk even these few bytes may not fit; the words are on the console then.
        with contextlib.suppress(EnvironmentLacks):
            monitor.status("failed", cause=cause, message=words)
        return "failed"


def build(settings: Settings, sets: Sets) -> nn.Module:
    """Build the run's network; its first weights depend on the seed alone."""
    torch.manual_seed(rng.derive(settings.seed, "weights"))
    return models.from_settings(
        settings.model,
        image_size=settings.data.image_size,
        num_classes=sets.source.num_classes,
        in_chans=CHANNELS,
    )


def _implementations(model: nn.Module) -> str:
    """What computes the operators, such as ``UnifiedSpatialOp: auto``."""
    found = {
        f"{type(module).__name__}: {module.implementation}"
        for module in model.modules()
        if isinstance(getattr(module, "implementation", None), str)
    }
    return ", ".join(sorted(found))


def _kernels(device: torch.device) -> str:
    """Which fused kernels there are for a device, or why there are none."""
    if device.type == "cuda":
        missing = lsa_kernels.gpu.why_missing()
        return f"no Triton kernels: {missing}" if missing else "Triton kernels"
    return lsa_kernels.build_info()


def _facts(life: Life, model: nn.Module, sets: Sets, device: torch.device) -> Facts:
    """What is known before training; recorded for this attempt, and part of the result."""
    settings, source = life.settings, sets.source
    config = life.run_dir.config()
    cost = measure.count(model, (CHANNELS, settings.data.image_size, settings.data.image_size))
    commit, dirty = environment.code_state()
    facts = Facts(
        device=environment.device_name(device),
        device_kind=device.type,
        precision=str(environment.precision(settings.train, device)).removeprefix("torch."),
        torch=torch.__version__,
        commit=commit,
        dirty=dirty,
        implementation=_implementations(model),
        effective_batch=min(settings.train.batch_size, source.train_images),
        weights=settings.evaluation.weights,
        selected=settings.evaluation.epoch,
        data_fingerprint=source.fingerprint,
        train_images=source.train_images,
        test_images=source.test_images,
        params=cost.params,
        macs=cost.macs,
        epochs=settings.train.epochs,
        schema_version=SCHEMA_VERSION,
        identity=config["identity"],
        variant=config["variant"],
        seed=settings.seed,
    )
    if life.ranks.first:
        # "auto" took the fused kernels wherever these are there and fit.
        machine = environment.machine(device)
        found = Attempt(
            **dict(facts), **machine, processes=life.ranks.count, kernels=_kernels(device)
        )
        life.run_dir.write_environment(life.attempt, found)
    return facts
