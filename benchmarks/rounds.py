"""Contenders timed in turns, as ratios of the same round; and what figures must be read with.

A ratio is taken within a round, where both met the same machine, and its interval is that of the
median by ranks, which supposes nothing of how times are spread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import lsa_kernels
from lsa_study.machine import bfloat16_units, keep_memory
from lsa_study.models import throughput
from lsa_study.models.throughput import Contender
from lsa_study.training.environment import code_state

LEAST = 15
"""Rounds that a published median rests on."""
LEVEL = 0.95


@dataclass(frozen=True)
class Effort:
    """How long contenders are timed: for ``seconds`` in all, but ``rounds`` at least."""

    seconds: float = 0.0
    rounds: int = LEAST


def options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Add what all scripts ask alike."""
    parser.add_argument("--seconds", type=float, default=seconds, help="for contenders in turns")
    parser.add_argument("--rounds", type=int, default=LEAST, help="at least so many; 3 or more")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="a JSON file")


def timed(
    contenders: Mapping[str, Contender], base: str, effort: Effort, device: torch.device,
    *, beside: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Time contenders in turns; each with its speed as a multiple of that of ``base``.

    Returns:
        By name: median and quartiles in seconds, rounds, peak memory, and ``speed``: the median of
        the rounds' ratios with the ends of its interval; the same against others in ``beside``.
    """
    taken = throughput.rounds(
        contenders, seconds=effort.seconds, least=effort.rounds, device=device
    )
    found = {}
    for name, times in taken.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        found[name] = {
            "median": median, "low": low, "high": high, "rounds": len(times),
            "peak_bytes": _peak_bytes(contenders[name], device),
            "speed": speed(taken[base], times),
            "beside": {other: speed(taken[other], times) for other in beside},
        }  # fmt: skip
    return found


def _peak_bytes(call: Contender, device: torch.device) -> int:
    if isinstance(call, partial) and isinstance(there := call.func.__self__, Apart):
        return int(there.ask(call.args[0], device.type))
    return throughput.peak_bytes(call, device)


class Apart:
    """Contenders in a process of their own, which waits while others have their turn.

    So that each side has what its own program has: kept memory or not, its own compiled code.

    Args:
        make: gives the contenders by name; it and ``given`` go to the process.
        keep: whether the process keeps memory as our workers do (``lsa_study.machine``).
    """

    def __init__(self, make: Callable[..., dict[str, Contender]], *given: Any, keep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        serve = (there, torch.get_num_threads(), keep, make, given)
        self._process = context.Process(target=_serve, args=serve)
        self._process.start()
        there.close()
        self.contenders: dict[str, Contender] = {
            name: partial(self.ask, name) for name in self._answer("its contenders")
        }

    def ask(self, name: str, device: str | None = None) -> Any:
        """Call a contender, and give what it returned; or its peak memory on a device."""
        self._here.send((name, device))
        return self._answer(name)

    def _answer(self, name: str) -> Any:
        try:
            failed, answer = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{name}: its process ended by {self._process.exitcode}") from None
        if failed:
            raise RuntimeError(f"{name}: {answer}")
        return answer

    def end(self) -> None:
        """Let the process go, and its memory."""
        self._process.kill()
        self._process.join()


def _serve(there: Any, threads: int, keep: bool, make: Any, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    try:
        calls = make(*given)
        there.send((False, list(calls)))
        while True:
            name, device = there.recv()
            if device is not None:
                there.send((False, throughput.peak_bytes(calls[name], torch.device(device))))
            else:
                returned = calls[name]()
                there.send((False, None if returned is None else float(returned)))
    except EOFError:  # the other side has gone
        return
    except Exception as error:
        there.send((True, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))


def speed(base: list[float], times: list[float]) -> list[float]:
    """How many times as fast as ``base``: the median of paired ratios, and its interval's ends."""
    ratios = sorted(one / other for one, other in zip(base, times, strict=True))
    # Of so many ratios as many lie below the true median as tosses of a coin show heads.
    aside = max(0, int(stats.binom.ppf((1 - LEVEL) / 2, len(ratios), 0.5)) - 1)
    return [statistics.median(ratios), ratios[aside], ratios[-1 - aside]]


def shown(figure: list[float]) -> str:
    """A ratio as text."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*figure)


def machine(device: torch.device) -> dict[str, Any]:
    """What figures must be read with: device, instructions, threads, versions, commit."""
    commit, changed = code_state()
    built = lsa_kernels.build_info().partition(", /")[0] if device.type == "cpu" else ""
    return throughput.machine(device) | {
        "instructions": instructions(device), "built": built, "commit": commit,
        "changed_since": changed,
    }  # fmt: skip


def instructions(device: torch.device) -> str:
    """amx, avx512, avx2 or default on a CPU, as torch names what it uses; else cuda.

    A processor with AMX multiplies matrices of bfloat16 in a unit of their own.
    """
    if device.type != "cpu":
        return device.type
    found = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "_")
    return "amx" if found == "avx512" and "amx_bf16" in bfloat16_units() else found


def write(path: Path | None, found: dict[str, Any]) -> None:
    """Write what was found, if a file is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
