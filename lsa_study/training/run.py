"""One attempt of a run: claim the folder, prepare, train, record how it ended."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lsa_study import measure
from lsa_study.config.outside import verify
from lsa_study.config.parts import smaller
from lsa_study.config.settings import SCHEMA_VERSION
from lsa_study.data import rng
from lsa_study.data.sets import CHANNELS
from lsa_study.errors import EnvironmentLacks, LsaError, Refused, cause_of, explained
from lsa_study.machine import cpu_name, keep_memory
from lsa_study.models import tokens
from lsa_study.ops import choices, sdpa
from lsa_study.record import Attempt, Facts, Outcome, Result, changes
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint, distributed, environment, init_from, tasks
from lsa_study.training.distributed import Distributed
from lsa_study.training.evaluate import Report, numbers
from lsa_study.training.monitor import Monitor, job
from lsa_study.training.stop_rule import GivenUp
from lsa_study.training.tasks import Task
from lsa_study.training.trainer import Diverged, Progress, Stopped, Trainer


def live(run_dir: RunDir, *, stop: Callable[[], bool], console: Console | None) -> str:
    """Train or resume a run; see ``lsa_study.training.train``."""
    settings = run_dir.settings()
    if (result := run_dir.result()) is not None:
        # An attempt that was killed right after it wrote the result left the rest undone.
        if result.outcome == "done":
            checkpoint.remove(run_dir)
        if run_dir.status().state != result.outcome:
            run_dir.change_state(result.outcome)
        return result.outcome
    with distributed.join() as us, contextlib.ExitStack() as stack:

        def claim() -> Monitor:
            mine, attempt, shown = run_dir, 0, None
            if us.first:
                (mine, attempt), shown = stack.enter_context(run_dir.owned(job())), console
            return stack.enter_context(Monitor(mine, settings, attempt, shown))

        return _Attempt(us.all_or_raise(claim), stop, us).carry_out()


class _Attempt:
    """One attempt; remembers what it finds out, so that its end can be recorded wherever it is."""

    def __init__(self, monitor: Monitor, stop: Callable[[], bool], ranks: Distributed) -> None:
        self.monitor, self.stop, self.ranks = monitor, stop, ranks
        self.run_dir, self.settings = monitor.run_dir, monitor.settings
        self.facts = Facts()
        self.device = torch.device("cpu")
        self.progress = Progress()
        self.cosine: float | None = None

    def carry_out(self) -> str:
        """Prepare, train, record; returns the state the run is left in."""
        monitor = self.monitor
        try:
            return self._train()
        except Stopped:
            at = self.progress
            where = f"epoch {at.epoch}" + (f", step {at.step} of the next" if at.step else "")
            monitor.say(f"Stopping after this step... saved at {where}")
            monitor.status("stopped", epoch=at.epoch, step=at.step, message=f"saved at {where}")
            return "stopped"
        except Refused as error:  # the folder is another process's now
            monitor.say(str(error))
            raise
        except KeyboardInterrupt:
            monitor.status("stopped", message="left at once; the last checkpoint stands")
            raise
        except Exception as error:
            shown = explained(error)
            message = str(shown)
            if not isinstance(error, LsaError):
                monitor.log("".join(traceback.format_exception(error)))
            if not isinstance(shown, LsaError):
                message = f"{type(error).__name__}: {error}"
            monitor.say(message)
            # On a full disk even these few bytes may not fit; the message is on the console then.
            with contextlib.suppress(EnvironmentLacks):
                monitor.status("failed", cause=cause_of(shown), message=message)
            return "failed"

    def _train(self) -> str:
        settings, ranks = self.settings, self.ranks
        device = environment.choose_device(settings.runtime, local_rank=ranks.local)
        self.device = device
        if device.type == "cpu":
            keep_memory()
        environment.forget_peak_memory(device)
        task = tasks.of(settings)
        with environment.deterministic(device), environment.tf32(settings.train, device):
            ranks.all_or_raise(lambda: verify(settings))
            sets = ranks.all_or_raise(lambda: task.sets(str(device)))
            # The first weights depend on the seed alone.
            torch.manual_seed(rng.derive(settings.seed, "weights"))
            model = task.network(sets.source.num_classes)
            self.facts = self._facts(model, sets)
            try:
                loop = ranks.all_or_raise(lambda: self._prepare(model, sets))
                report = loop.run()
            except Diverged as error:
                return self._end("diverged", str(error))
            except GivenUp as error:
                return self._end("stopped early", str(error))
            except torch.OutOfMemoryError as error:  # on a GPU
                at, cut = self.progress, settings.runtime.accumulate
                return self._end(
                    "oom",
                    f"epoch {at.epoch + 1}, step {at.step + 1}: out of memory at a batch of "
                    f"{settings.train.batch_size} in {cut} part{'s' * (cut > 1)} "
                    f"({str(error).splitlines()[0]}); the same effective batch in less memory: "
                    f"{smaller(settings, ranks.count)}",
                )
            if ranks.first:
                weights = loop.final_weights()
                checkpoint.save_weights(self.run_dir, weights)
                self._keep_seen(task, model, sets, weights)
                self.cosine = self._token_cosine(model, sets, weights)
            return self._end("done", None, report)

    def _keep_seen(
        self, task: Task, model: nn.Module, sets: Any, weights: dict[str, Tensor]
    ) -> None:
        """Keep a picture of what the network finds; a trained run is never lost to it."""
        if self.settings.task.kind == "classify":
            return
        try:
            model.load_state_dict(weights)
            picture = task.seen(model, sets)
        except Exception as error:
            self.monitor.log(f"no picture of what is found: {type(error).__name__}: {error}\n")
        else:
            if picture is not None:
                self.run_dir.write_seen(picture)

    def _token_cosine(
        self, model: nn.Module, sets: Any, weights: dict[str, Tensor]
    ) -> float | None:
        """How alike tokens are behind the stem, where the run is about stems."""
        if self.settings.model.stem is None or self.settings.task.kind != "classify":
            return None
        model.load_state_dict(weights)
        _, images, _ = next(iter(sets.test(self.settings.evaluation.batch_size)))
        return tokens.mean_cosine(tokens.stem_tokens(model.eval(), images))

    def _facts(self, model: nn.Module, sets: Any) -> Facts:
        """What is known before training; recorded for this attempt, and part of the result."""
        settings, source, device = self.settings, sets.source, self.device
        config = self.run_dir.config()
        cost = measure.count(model, (CHANNELS, *tasks.of(settings).counted))
        commit, dirty = environment.code_state()
        fused, kernels = environment.fused_kernels(device)
        dtype = environment.precision(settings.train, device)
        parts = {
            f"{type(module).__name__}: {module.implementation}"
            for module in model.modules()
            if isinstance(getattr(module, "implementation", None), str)
        }
        facts = Facts(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            device_kind=device.type,
            precision=environment.precision_name(settings.train, device),
            torch=torch.__version__,
            commit=commit,
            dirty=dirty,
            code=environment.code_digest(),
            fused=f"{fused}, compiled" if settings.runtime.compile else fused,
            threads=torch.get_num_threads(),
            processes=self.ranks.count,
            implementation=", ".join(sorted(parts)),
            effective_batch=min(settings.train.batch_size, source.train_images),
            weights=settings.evaluation.weights,
            selected=settings.evaluation.epoch
            + (" by validation" if source.held_out and settings.evaluation.epoch == "best" else ""),
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
        if self.ranks.first:
            found = Attempt(
                **dict(facts), **environment.machine(device), kernels=kernels,
                choices=choices.said(device) if device.type in choices.FOLLOWED else None,
                attention=sdpa.way_on(device.type, dtype, learns=True),
            )  # fmt: skip
            self.run_dir.write_environment(self.monitor.attempt, found)
        return facts

    def _prepare(self, model: nn.Module, sets: Any) -> Trainer:
        state, begun = checkpoint.load(self.run_dir), None
        if state is None:
            begun = init_from.load_initial_weights(model, self.run_dir, self.settings)
        loop = Trainer(self.monitor, self.stop, self.ranks, model, sets)
        loop.progress.start = begun
        checkpoint.need_space(self.run_dir, loop.checkpoint_bytes())
        if state is not None:
            loop.resume(state)
        self.progress = loop.progress
        return loop

    def _end(self, outcome: Outcome, reason: str | None, report: Report | None = None) -> str:
        if not self.ranks.first:
            return outcome
        run_dir, at, done = self.run_dir, self.progress, outcome == "done"
        alone, used = self.device.type == "cpu" and self.ranks.count == 1, at.processor_seconds
        report, after = report or at.last, done or outcome == "stopped early"
        missing = [f"{n} {said}" for n, said in report.metrics.items() if isinstance(said, str)]
        if done and report.bits is not None:
            run_dir.write_correct(report.bits.numpy())
        if done and report.image_scores is not None:
            run_dir.write_image_scores(report.image_scores.numpy())
        run_dir.write_result(
            Result(
                **dict(self.facts),
                outcome=outcome,
                reason=reason,
                start=at.start,
                continued=changes(run_dir.environments()),
                acc1=report.acc1 if done else None,
                acc5=report.acc5 if done else None,
                loss=report.loss if done else None,
                ema_acc1=report.ema_acc1 if done else None,
                token_cosine=self.cosine,
                metrics=numbers(report) if done else {},
                metrics_missing="; ".join(missing) or None if done else None,
                best_acc1=at.best.acc1 if at.best.epoch else None,
                epoch=report.epoch if after else at.epoch + 1,
                seconds=at.seconds,
                seconds_per_epoch=at.seconds / max(1, at.epoch),
                processor_seconds_per_epoch=used / max(1, at.epoch) if alone else None,
                peak_memory_bytes=max(at.peak_memory, environment.peak_memory(self.device)),
                attempts=len(run_dir.attempts()),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )
        if done:
            checkpoint.remove(run_dir)
        message = reason or f"{report.shown} after epoch {report.epoch}"
        if done and missing:
            message += f"; no {'; no '.join(missing)}"
        self.monitor.say(f"{outcome}: {message}")
        self.monitor.status(outcome, epoch=at.epoch, step=at.step, message=message)
        return outcome
