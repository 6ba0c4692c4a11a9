"""Why a run is gone that could not tell it itself: what SLURM and the last lines say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsa_study.launch.scheduler import Ended

ENDS: dict[str, tuple[str, str, str]] = {
    "OUT_OF_MEMORY": ("failed", "oom-host", "used more memory than it asked for"),
    "NODE_FAIL": ("failed", "node", "its node failed"),
    "BOOT_FAIL": ("failed", "node", "its node did not start"),
    "TIMEOUT": ("failed", "timeout", "cut off at the time limit"),
    "DEADLINE": ("failed", "timeout", "cut off at its deadline"),
    "PREEMPTED": ("failed", "preempted", "made way and was not queued again"),
    "CANCELLED": ("stopped", "cancelled", "its job was cancelled"),
}
"""What a job's last state in SLURM says of its run: state, cause, words."""

DISK_EXIT_CODE = 28
"""Of a process that could write nothing more; the system's number for a full device."""

TRACES = (
    (("No space left", "Disk quota", "cannot be written"), "disk"),
    (("ModuleNotFoundError", "ImportError"), "import"),
    (("oom-kill", "oom_kill", "Out Of Memory", "MemoryError"), "oom-host"),
)
"""Words in the last lines of a job's output, and the cause they tell."""


@dataclass(frozen=True)
class Verdict:
    """Where a run that is gone stands."""

    state: str
    cause: str
    words: str
    message: str = ""
    """The line of output that told, else the last one."""


def judge(end: Ended | None, last: Sequence[str], *, had_job: bool) -> Verdict:
    """Judge a run without a result that nobody writes and no queue holds.

    Args:
        end: what SLURM remembers of its job; None if nothing.
        last: the last lines its job printed.
        had_job: whether it was queued at all.
    """
    message = last[-1] if last else ""
    if end is None:
        words = "job not in the queue" if had_job else "its process is gone"
        return Verdict("lost", "lost", words)
    if end.state in ENDS:
        return Verdict(*ENDS[end.state], message)
    code, _, number = end.exit_code.partition(":")
    if code == str(DISK_EXIT_CODE):
        return Verdict("failed", "disk", "its disk is full", message)
    by_signal = number not in ("", "0")
    for telling, cause in TRACES:
        if lines := [line for line in last if any(word in line for word in telling)]:
            return Verdict("failed", cause, lines[-1], lines[-1])
    if by_signal or code in ("137", "143"):
        how = f"signal {number}" if by_signal else f"exit code {code}"
        return Verdict("lost", "lost", f"its process was killed ({how})", message)
    words = f"its job ended ({end.state.lower()}, {end.exit_code}) without a result"
    return Verdict("failed", "bug", words, message)
