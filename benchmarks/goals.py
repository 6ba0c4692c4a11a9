"""What this project wants to reach in speed on a CPU, measured: goal, figure, met or not.

    python benchmarks/goals.py --out results/benchmarks [--data PHOTOGRAPHS] [--only PART]

Parts, each a process of its own with a limit; all take under 25 minutes on two idle cores:

operators   the operators at three stages, without slow peers (``operators.py`` has those too)
networks    Swin-T with other layers against timm's, float32
bf16        the same in bfloat16, where the processor has it
trainer     our trainer's step against timm's script, float32 and bfloat16
loader      photographs a second against timm's loader
ddf         ResNet-50 with DDF against timm's ResNet-50
compiled    our networks against timm's, all by torch.compile, in training

Each writes PART-INSTRUCTIONS.json as it goes on (as ``networks-avx512.json``), and after each the
table is written anew, ``goals-INSTRUCTIONS.json`` and ``.md``. Without PHOTOGRAPHS (a folder with
``train/<wnid>/*.JPEG``) made-up ones are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import network_steps
import operators
import torch
import training_step
from contenders import STAGES
from rounds import LEAST, Effort, instructions, shown, write

CPU = torch.device("cpu")
Found = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    seconds: float
    tiny: bool
    data: Path | None


def _operators(sizes: Sizes) -> Iterator[Found]:
    stages = STAGES[-1:] if sizes.tiny else STAGES
    batch, effort = 1 if sizes.tiny else 8, Effort(sizes.seconds, sizes.rounds)
    return operators.measured(batch, stages, effort, CPU, slow=False, larger=False)


def _networks(what: str, precision: str) -> Callable[[Sizes], Iterator[Found]]:
    def part(sizes: Sizes) -> Iterator[Found]:
        tiny = {"batch": 2, "size": 32} if sizes.tiny else {}
        return network_steps.measured(what, precision, Effort(0, sizes.rounds), **tiny)

    return part


def _training(what: str) -> Callable[[Sizes], Iterator[Found]]:
    def part(sizes: Sizes) -> Iterator[Found]:
        effort = Effort(sizes.seconds if what == "loading" else 0, sizes.rounds)
        with tempfile.TemporaryDirectory() as folder:
            training_step.lay_out(sizes.data, Path(folder))
            given = ["runtime.workers=0", *(["data.image_size=32"] if sizes.tiny else [])]
            for found in training_step.measured(Path(folder), (what,), effort, "cpu", given):
                yield found | {"photographs": "real" if sizes.data else "made up"}

    return part


PARTS = {
    "operators": (_operators, 5.0), "networks": (_networks("swin", "float32"), 6.0),
    "bf16": (_networks("swin", "bf16"), 7.0), "trainer": (_training("step"), 4.0),
    "loader": (_training("loading"), 2.0), "ddf": (_networks("ddf", "float32"), 4.0),
    "compiled": (_networks("compiled", "float32"), 12.0),
}  # fmt: skip
"""What each measures, and after how many minutes it is ended; tiny sizes are for busy machines."""


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted, and where a part's file has it."""

    what: str
    part: str
    wanted: float
    figure: Callable[[Found], list[float]]


def _stage(name: str, number: int) -> Callable[[Found], list[float]]:
    def figure(found: Found) -> list[float]:
        side = STAGES[number][0]
        modes = {(one["side"], one["mode"]): one["times"] for one in found["stages"]}
        return modes[side, operators.MODES[1]][name]["speed"]

    return figure


def _network(name: str, mode: str = "training") -> Callable[[Found], list[float]]:
    return lambda found: found["networks"][name][mode]["speed"]


def _pair(name: str, base: str = "timm") -> Callable[[Found], list[float]]:
    def figure(found: Found) -> list[float]:
        one = found["pairs"][0]["times"][name]
        return one["speed"] if base == "timm" else one["beside"][base]

    return figure


def goals() -> list[Goal]:
    """All of them, in the order of the table."""
    found = []
    for name, wanted in (
        ("Net7-N", (1.65, 1.65, 1.15)), ("Net7 window", (1.8, 1.5, 1.3)), ("LSA", (2.4, 2.3, 1.8)),
    ):  # fmt: skip
        for number, (figure, (side, heads)) in enumerate(zip(wanted, STAGES, strict=True)):
            what = f"{name}, forward and backward, {side} x {side}, {heads} heads, x LSA by SDPA"
            found.append(Goal(what, "operators", figure, _stage(name, number)))
    step = "training step of Swin-T with"
    for part, text, wanted in (
        ("networks", "x timm's", (1.1, 1.1, 1.05)),
        ("bf16", "in bf16, x timm's in bf16", (1.05, 1.05, 1.0)),
        ("compiled", "compiled, x timm's compiled", (1.0, 1.0, 1.0)),
    ):
        for name, figure in zip(network_steps.COMPILED, wanted, strict=True):
            found.append(Goal(f"{step} {name}, {text}", part, figure, _network(name)))
    found += [
        Goal("our trainer's step, x timm's script", "trainer", 1.1, _pair("ours")),
        Goal("our trainer's step in bf16, x its own in float32", "trainer", 2.0,
             _pair("ours, bf16", "ours")),
        Goal("photographs a second, x timm's loader", "loader", 1.5, _pair("ours")),
    ]  # fmt: skip
    return found


def table(out: Path, kind: str, said: Mapping[str, str]) -> tuple[list[Found], str]:
    """Goals beside the figures that files in ``out`` hold, as data and as Markdown."""
    rows, parts = [], {}
    for part in PARTS:
        path = out / f"{part}-{kind}.json"
        parts[part] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for goal in goals():
        figure = None
        if parts[goal.part]:
            try:
                figure = goal.figure(parts[goal.part])
            except (KeyError, IndexError):  # the part did not come so far
                figure = None
        met = None if figure is None else figure[0] >= goal.wanted
        rows.append({"goal": goal.what, "wanted": goal.wanted, "measured": figure, "met": met})
    words = {None: "not measured", True: "yes", False: "no"}
    lines = ["| goal | wanted | measured [interval] | met |", "|---|---:|---:|---|"]
    for row in rows:
        figure = "–" if row["measured"] is None else shown(row["measured"])
        lines.append(f"| {row['goal']} | {row['wanted']:.2f} | {figure} | {words[row['met']]} |")
    lines.append("")
    for part, one in parts.items():
        if one:
            at = one["machine"]
            commit = (at["commit"] or "unknown")[:10] + (", changed" * bool(at["changed_since"]))
            lines.append(
                f"- {part}: {at['device']}, {at['threads']} threads, torch {at['torch']}, "
                f"{at['built']}, commit {commit}"
            )
    lines += [f"- {part}: {what}" for part, what in said.items() if what]
    return rows, "\n".join(lines) + "\n"


def carry_out(part: str, command: list[str], minutes: float) -> str:
    """Run a part as a process; says what went wrong, or nothing."""
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"ended after {minutes:.0f} minutes; what it had is in the table"
    if process.returncode == 0:
        return ""
    last = ([line for line in errors.splitlines() if line.strip()] or ["no message"])[-1]
    print(f"{part}: {errors}", file=sys.stderr)
    return f"failed ({last.strip()}); what it had is in the table"


def main() -> int:
    """Carry out the parts, and write the table after each; 0 if all went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS, action="append", help="more than once: those")
    parser.add_argument("--rounds", type=int, default=LEAST)
    parser.add_argument("--seconds", type=float, default=8.0, help="for operators and the loader")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    kind = instructions(CPU)
    chosen = asked.only or list(PARTS)
    if asked.here:  # this is the process of a part
        sizes = Sizes(asked.rounds, asked.seconds, asked.tiny, asked.data)
        for part in chosen:
            for found in PARTS[part][0](sizes):
                write(asked.out / f"{part}-{kind}.json", found)
        return 0
    said: dict[str, str] = {}
    given = ["--out", str(asked.out), "--rounds", str(asked.rounds), "--seconds",
             str(asked.seconds), *(["--data", str(asked.data)] if asked.data else []),
             *(["--tiny"] if asked.tiny else [])]  # fmt: skip
    for part in chosen:
        begun = time.monotonic()
        (asked.out / f"{part}-{kind}.json").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--only", part, "--here", *given]
        said[part] = carry_out(part, command, PARTS[part][1] * (5 if asked.tiny else 1))
        rows, text = table(asked.out, kind, said)
        write(asked.out / f"goals-{kind}.json", {"goals": rows, "failed": said})
        (asked.out / f"goals-{kind}.md").write_text(text, "utf-8")
        print(f"-- {part}: {said[part] or 'done'}, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"\n{text}")
    return int(any(said.values()))


if __name__ == "__main__":
    sys.exit(main())
