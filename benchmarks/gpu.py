"""All that a GPU is wanted for, in one call: is it right, how fast is it, what does it find.

    python benchmarks/gpu.py --minutes 9 --out FOLDER [--device cuda]

Steps, in the order of what one wants to know first; each is a process of its own with a limit, and
what it found is in FOLDER/gpu.json before the next one begins, so that a call that is cut off
leaves what it had:

1. environment: what ``lsa doctor`` says.
2. choices: ``lsa bench --choose``: our kernels, torch's FlexAttention and attention and the plain
   definition in turns, and which of them are wrong. All that comes after follows the table.
3. networks: ``lsa bench`` of Table 7's networks in training and inference.
4. tests: those marked ``gpu``: every kernel, norm, type and gradient, and whole runs.
5. operators: ``benchmarks/operators.py``.
6. trainer: ``benchmarks/training_step.py``, our step beside timm's.
7. runs: rows of Table 1, several at a time, for the minutes that are left.

``--device cpu`` goes through all of it with tiny sizes, which only shows that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARE = {
    "environment": 0.1, "choices": 0.25, "networks": 0.25, "tests": 0.4, "operators": 0.3,
    "trainer": 0.4, "runs": 1.0,
}  # fmt: skip
"""Of the minutes that are left when a step begins, the most that it may take."""
OURS = ("operators", "training_step")
TAIL = 6000
"""Characters of a step's output that are kept."""


@dataclass(frozen=True)
class Call:
    """Where the findings go, on what device, until when."""

    out: Path
    device: str
    end: float

    @property
    def tiny(self) -> bool:
        """Whether sizes are such that a CPU comes to the end."""
        return self.device == "cpu"

    def command(self, step: str, seconds: float) -> list[str]:
        """What a step runs in at most so many seconds."""
        lsa = [sys.executable, "-m", "lsa_study.cli"]
        timings = {name: str(ROOT / "benchmarks" / f"{name}.py") for name in OURS}
        timed = str(max(1.0, seconds / 8))
        tiny = self.tiny
        networks = ["lsa_swin_tiny", "net7_swin_tiny_n"] if tiny else []
        sizes = ["--device", self.device, *(["--size", "32", "--batch", "1"] if tiny else [])]
        commands = {
            "environment": [*lsa, "doctor"],
            "choices": [
                *lsa, "bench", "--choose", *networks, *sizes, "--results", str(self.out),
                # A case that has begun is measured to its end.
                "--seconds", "0" if tiny else str(seconds / 2),
            ],
            "networks": [
                *lsa, "bench", *networks, *sizes,
                "--seconds", "0" if tiny else timed, "--results", str(self.out), "--json",
            ],
            "tests": [
                sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
                *(["-k", "qk+bias-softmax-0 or memory_is_counted"] if tiny else []),
                str(ROOT / "tests" / "kernels"), str(ROOT / "tests" / "training"),
            ],
            "operators": [
                sys.executable, timings["operators"], "--quick",
                *(["--smallest"] if tiny else []), "--batch", "1" if tiny else "128",
                "--device", self.device, "--seconds", "0" if tiny else timed,
                *(["--rounds", "3"] if tiny else []),
                "--out", str(self.out / "operators.json"),
            ],
            "trainer": [
                sys.executable, timings["training_step"], "--device", self.device,
                "--seconds", "0" if tiny else timed, *(["--rounds", "3"] if tiny else []),
                "--out", str(self.out / "training.json"),
            ],
            "runs": [
                *lsa, "run", "table1", "--tier", "toy" if tiny else "proxy", "--jobs",
                "1" if tiny else "4", "--results", str(self.out / "results"),
                "--set", f"runtime.device={self.device}", "--as", "on-this-device",
                *(["--only", "swin", "--set", "data.train_limit=64", "--set", "train.epochs=1"]
                  if tiny else []),
            ],
        }  # fmt: skip
        return commands[step]

    def carry_out(self, step: str) -> dict[str, object]:
        """Run a step; what came of it."""
        begun = time.monotonic()
        seconds = max(60.0, SHARE[step] * (self.end - begun))
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        # A run that is interrupted leaves a checkpoint; the other steps just end.
        process = subprocess.Popen(
            self.command(step, seconds), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", cwd=ROOT, start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "LSA_GPU_TESTS_ON": self.device},
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 15)
            try:
                said, _ = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                said, _ = process.communicate()
        return {
            "step": step, "exit_code": process.returncode, "output": said[-TAIL:],
            "seconds": round(time.monotonic() - begun, 1), "limit": round(seconds, 1),
        }  # fmt: skip


def main() -> int:
    """Carry out every step; 0 if all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", default=",".join(SHARE), help="some of them, with commas")
    given = parser.parse_args()
    steps = given.steps.split(",")
    if unknown := set(steps) - set(SHARE):
        parser.error(f"--steps {','.join(sorted(unknown))}: no such step; give {','.join(SHARE)}")
    given.out.mkdir(parents=True, exist_ok=True)
    call = Call(given.out.resolve(), given.device, time.monotonic() + 60 * given.minutes)
    found: list[dict[str, object]] = []
    for step in steps:
        if found and time.monotonic() > call.end:
            found.append({"step": step, "exit_code": None, "output": "no time was left"})
        else:
            found.append(call.carry_out(step))
        (call.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"-- {step}: exit code {found[-1]['exit_code']}\n{found[-1]['output']}", flush=True)
    return int(any(one["exit_code"] != 0 for one in found))


if __name__ == "__main__":
    sys.exit(main())
