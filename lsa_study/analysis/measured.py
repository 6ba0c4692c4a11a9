"""What claims of costs are judged by beside runs: counted networks and timed ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from scipy import stats

from lsa_study.analysis.article import counts_in, network_key
from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.statistics import LEVEL, Estimate
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

COUNTED = ("params", "macs")
CELLS = {"params": "params_m", "macs": "flops_g", "inference": "throughput_img_s"}
"""Where the article prints a cost."""
COSTS = "../results/benchmarks/costs.json"
"""Where counts stand for studies that show none, as a path relative to the experiment file."""
MEDIAN = math.sqrt(math.pi / 2) / (2 * float(stats.norm.ppf(0.75)))
"""Standard error of a median of one normal value, in distances between its quartiles."""

RECORDED = ("speed", "memory")
"""Costs that runs record of their training."""


def recorded(metric: str, run: RunRecord) -> float | None:
    """One of ``RECORDED``; None where a run says nothing of it.

    On a CPU the speed is that by the processor's seconds, as runs beside one another slow each
    other, and the peak of memory is the whole process's and says nothing.
    """
    if metric == "memory":
        return run.peak_memory_bytes if run.device_kind == "cuda" else None
    on_cpu = run.device_kind == "cpu"
    seconds = run.processor_seconds_per_epoch if on_cpu else run.seconds_per_epoch
    return 1 / seconds if seconds else None


def named(metric: str, runs: Iterable[RunRecord]) -> str:
    """What ``recorded`` is of these runs, within a sentence."""
    if metric == "memory":
        return "device memory"
    return f"{'processor ' * any(run.device_kind == 'cpu' for run in runs)}time of an epoch"


@dataclass(frozen=True)
class Ratio:
    """How much more one network needs than another, or does."""

    percent: float
    error: float = 0.0
    """Of the ratio's logarithm; 0 where both are counted."""
    freedom: int = 0
    method: str = ""
    notes: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate:
        """Percent, with an interval where it was timed."""
        half = float(stats.t.ppf(0.5 + LEVEL / 2, self.freedom)) * self.error if self.error else 0.0
        ends = [100 * math.expm1(self._log(self.percent) + side * half) for side in (-1, 1)]
        return Estimate((self.percent,), self.percent, *ends)

    def p(self, percent: float) -> float | None:
        """Two-sided, against a true value; None where both are counted."""
        if not self.error:
            return None
        distance = abs(self._log(self.percent) - self._log(percent))
        return float(2 * stats.t.sf(distance / self.error, self.freedom))

    @staticmethod
    def _log(percent: float) -> float:
        return math.log1p(percent / 100)

    @classmethod
    def counted(cls, metric: str, rows: Sequence[tuple[Study, str]]) -> Self:
        """Compare two rows by the committed counts of their networks.

        Raises:
            LookupError: a network was not counted.
        """
        found, files = [], []
        for study, variant in rows:
            path = study.document.path.parent / (study.file.costs or COSTS)
            network = counts_in(path.resolve()).get(network_key(study.variants[variant]))
            if network is None:
                problem = "not counted; run python benchmarks/costs.py"
                raise LookupError(f"{study.name}/{variant}: {problem}")
            found.append(network[metric])
            files.append("/".join(path.resolve().parts[-3:]))
        method = f"counted, {' and '.join(dict.fromkeys(files))}, without a run"
        return cls(100 * (found[0] / found[1] - 1), method=method)

    @classmethod
    def timed(cls, rows: Sequence[tuple[Study, str]]) -> Self:
        """Compare two rows by what ``lsa bench`` measured of their networks in inference.

        The medians' errors follow from quartiles and rounds, as if each had been timed apart.

        Raises:
            LookupError: a network was not timed, or not in the same session.
            ConfigError: the file cannot be read.
        """
        names, files = [], []
        for study, variant in rows:
            name = study.file.variants[variant].network
            if name is None or study.file.benchmark is None:
                raise LookupError(f"{study.name}/{variant}: names no network of a benchmark")
            names.append(name)
            files.append((study.document.path.parent / study.file.benchmark).resolve())
        if files[0] != files[1] or not files[0].exists():
            raise LookupError(f"{files[-1].name}: no benchmark of both rows; run lsa bench")
        try:
            found = json.loads(files[0].read_text("utf-8"))
            machine, networks = found["machine"], found["networks"]
            if lacking := [name for name in names if name not in networks]:
                raise LookupError(f"{', '.join(lacking)}: not timed; run lsa bench")
            one, other = (networks[name]["inference"] for name in names)
            errors = [
                MEDIAN * (side["high"] - side["low"]) / side["median"] / math.sqrt(side["rounds"])
                for side in (one, other)
            ]
            rounds = min(one["rounds"], other["rounds"])
            where = (
                f"{machine['device']}, {machine['threads']} threads, {machine['kernels']}, "
                f"{found['precision']}, batch {found['batch']}; "
                "the article's on one V100, batch 128"
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"no figures of networks ({error!r}); run lsa bench"
            raise ConfigError(f"{files[0]}: {problem}") from None
        return cls(
            100 * (other["median"] / one["median"] - 1), math.hypot(*errors), rounds - 1,
            f"lsa bench in {'/'.join(files[0].parts[-3:])}, {' against '.join(names)}, "
            f"{rounds} interleaved rounds of one session",
            (f"timed on {where}",),
        )  # fmt: skip
