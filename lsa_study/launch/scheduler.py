"""What SLURM is asked and told, through its own commands and their plain text output.

The text formats used here have been the same for many versions; the JSON output has not.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lsa_study.errors import EnvironmentLacks

SECONDS = 30.0
"""How long a command may take before the controller counts as silent."""

SILENT = "contact|answer|timed out|temporar"
"""How SLURM's commands say that the controller cannot be reached for now."""

CALL_SIZE = 500
"""Job ids handed to one command."""

OF_SLURM = re.compile("SLURM_(?!CONF|JWT)|SBATCH_|SRUN_|SALLOC_|SQUEUE_|SCANCEL_|SINFO_|SACCT_")
"""Beginnings of variables that change what SLURM's commands do; ``SLURM_CONF`` finds SLURM."""

NOT_NOW = "not available now|down, drained or reserved|nodes are busy|reservation|licenses"
"""How a trial says that a job would wait, which a submission takes."""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """What SLURM says of a job: one that it has in hand, or remembers."""

    job: str
    state: str
    reason: str = ""
    """Why it is pending."""
    comment: str = ""
    exit_code: str = ""
    """``code:signal`` as SLURM writes it, once it has ended."""

    @property
    def pending(self) -> bool:
        """Whether it waits for its turn."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def ended(self) -> bool:
        """Whether it has left the queue; the rest is what is remembered of it."""
        return self.exit_code != ""


UNKNOWN, GONE = "UNKNOWN", "GONE"
"""States of a job while SLURM does not answer, and of one that it does not have in the queue."""

DISK_EXIT_CODE = 28
"""Of a process that could write nothing more; the system's number for a full device."""

ENDS: dict[str, tuple[str, str, str]] = {
    "OUT_OF_MEMORY": ("failed", "oom-host", "used more memory than it asked for"),
    "NODE_FAIL": ("failed", "node", "its node failed"),
    "BOOT_FAIL": ("failed", "node", "its node did not start"),
    "TIMEOUT": ("failed", "timeout", "cut off at the time limit"),
    "DEADLINE": ("failed", "timeout", "cut off at its deadline"),
    "PREEMPTED": ("failed", "preempted", "made way and was not queued again"),
    "CANCELLED": ("stopped", "cancelled", "its job was cancelled"),
}
"""What a job's last state in SLURM says of its run: state, cause, note."""

TRACES = (
    (("No space left", "Disk quota", "cannot be written"), "disk"),
    (("ModuleNotFoundError", "ImportError"), "import"),
    (("oom-kill", "oom_kill", "Out Of Memory", "MemoryError"), "oom-host"),
)
"""Phrases in the last lines of a job's output, and the cause that they mean."""


class Rejected(EnvironmentLacks):
    """SLURM refused an order; holds its own words."""


def call(*words: str, text: str | None = None) -> str:
    """Run one of SLURM's commands and return what it printed.

    Raises:
        Rejected: it failed; its own words are in the message.
    """
    try:
        with plain_environment():
            done = subprocess.run(
                words, input=text, capture_output=True, text=True, check=False, timeout=SECONDS
            )
    except OSError as error:
        raise Rejected(f"{words[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Rejected(f"{words[0]}: no answer from SLURM within {SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise Rejected(plain_words(done.stderr) or f"{words[0]} failed ({done.returncode})")
    return done.stdout


@contextlib.contextmanager
def plain_environment() -> Iterator[None]:
    """Leave out what a user's profile, or the job that one sits in, says to SLURM's commands."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if OF_SLURM.match(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def plain_words(stderr: str) -> str:
    """The last complaint of a command, without the names of programs before it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if "rror: " in line or "failure: " in line] or lines
    return re.sub(r"^(\S+: )?([Ee]rror: |allocation failure: )", "", told[-1]) if told else ""


# -- asking -------------------------------------------------------------------------------------


def queue(users: Collection[str] = ()) -> dict[str, SlurmJob]:
    """The jobs of some users (else of oneself) that have not ended, by job id.

    An element of an array has the id ``ARRAY_INDEX``.

    Raises:
        Rejected: the controller does not answer.
    """
    names = ",".join(sorted({*users} or {str(os.getuid())}))
    listed = call("squeue", "--noheader", "--array", "--user", names, "--format", "%i|%T|%r|%k")
    rows = [[part.strip() for part in line.split("|", 3)] for line in listed.splitlines()]
    return {row[0]: SlurmJob(*row) for row in rows if len(row) == 4}


def array_of(job: str) -> str:
    """The array (or job) that an element belongs to."""
    return job.partition("_")[0]


def ended(comments: Mapping[str, str]) -> dict[str, SlurmJob]:
    """What is still known of jobs that have left the queue; those forgotten are left out.

    The controller forgets after some minutes (``MinJobAge``); accounting remembers, where there
    is any and users may ask it.

    Args:
        comments: what each job carries, by its id. Numbers begin anew where a controller has lost
            its state: a job that carries something else is another one.
    """
    found = dict[str, SlurmJob]()
    for array in sorted({array_of(job) for job in comments}):
        with contextlib.suppress(Rejected):
            for line in call("scontrol", "show", "job", "--oneliner", array).splitlines():
                facts = defaultdict(str, re.findall(r"(\S+?)=(\S*)", line))
                index = facts["ArrayTaskId"]
                job = f"{facts['ArrayJobId']}_{index}" if index else facts["JobId"]
                found[job] = SlurmJob(
                    job, facts["JobState"], "", facts["Comment"], facts["ExitCode"]
                )
    ours = {job: end for job, end in found.items() if end.comment == comments.get(job)}
    if missing := comments.keys() - found.keys():
        arrays = ",".join(sorted({array_of(job) for job in missing}))
        command = ("sacct", "--noheader", "--parsable2", "--allocations", "--array")
        with contextlib.suppress(Rejected):
            told = call(*command, "--format", "JobID,State,ExitCode,Comment", "--jobs", arrays)
            for job, state, code, comment in (line.split("|", 3) for line in told.splitlines()):
                # It keeps comments only where it is set up to.
                if job in missing and comment in ("", comments[job]):
                    # "CANCELLED by 1000"
                    ours[job] = SlurmJob(job, state.split(" ", 1)[0], "", comment, code)
    return ours


def why_ended(end: SlurmJob, last: Sequence[str]) -> tuple[str, str, str, str]:
    """Judge the end of a job whose run has no result, also by the last lines that it printed.

    Returns:
        State and cause of the run, a note, and the line that says why, else the last one.
    """
    message = last[-1] if last else ""
    if end.state in ENDS:
        return *ENDS[end.state], message
    code, _, number = end.exit_code.partition(":")
    if code == str(DISK_EXIT_CODE):
        return "failed", "disk", "its disk is full", message
    for phrases, cause in TRACES:
        if lines := [line for line in last if any(phrase in line for phrase in phrases)]:
            return "failed", cause, lines[-1], lines[-1]
    by_signal = number not in ("", "0")
    if by_signal or code in ("137", "143"):
        how = f"signal {number}" if by_signal else f"exit code {code}"
        return "lost", "lost", f"its process was killed ({how})", message
    how = f"{end.state.lower()}, {end.exit_code}"
    return "failed", "bug", f"its job ended ({how}) without a result", message


def setting(name: str, otherwise: str) -> str:
    """A word of the controller's configuration, such as ``MaxArraySize``."""
    match = re.search(rf"^{name}\s*=\s*(\S+)", call("scontrol", "show", "config"), re.MULTILINE)
    return match[1] if match else otherwise


def try_out(script: str) -> None:
    """Have SLURM look at a batch script.

    Raises:
        Rejected: it would not take it, now or later.
    """
    try:
        call("sbatch", "--test-only", text=script)
    except Rejected as error:
        # With nodes out of service this may mean that they are missing, or that none ever fits.
        unsure = "configuration is not available" in str(error) and not _all_nodes_serve()
        if not unsure and not re.search(NOT_NOW, str(error)):
            raise


def _all_nodes_serve() -> bool:
    """Whether no node is down, drained or reserved."""
    states = call("sinfo", "--noheader", "--format", "%T").split()
    return all(re.fullmatch(r"(idle|mixed|allocated|completing|planned)[^*]*", s) for s in states)


def submit_limit() -> int | None:
    """Most jobs that accounting lets oneself have queued; None where it does not say."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        asked = ("show", "associations", f"user={user}", "format=MaxSubmitJobs")
        listed = call("sacctmgr", "--noheader", "--parsable2", *asked)
    except (Rejected, KeyError):
        return None
    return min((int(line) for line in listed.split() if line.isdigit()), default=None)


def explained(error: Rejected) -> str:
    """What SLURM said, and which partitions there are if it is about these."""
    message = str(error)
    if "partition" in message.lower():
        with contextlib.suppress(Rejected):
            known = set(call("sinfo", "--noheader", "--format", "%R").split())
            message += f"; known partitions: {', '.join(sorted(known))}"
    return message


def seconds_left(job: str) -> float | None:
    """Seconds until a running job's time limit; None if unknown or without limit."""
    try:
        left = call("squeue", "--noheader", "--job", job, "--format", "%L").strip()
        # [[DAYS-]HOURS:]MINUTES:SECONDS, or a word
        days, _, clock = left.rpartition("-")
        hours, minutes, seconds = map(int, f"0:{clock}".split(":")[-3:])
        return (int(days or 0) * 24 + hours) * 3600.0 + minutes * 60 + seconds
    except (Rejected, ValueError):
        return None


# -- telling ------------------------------------------------------------------------------------


def requeue(job: str, *, patience: float = 90.0) -> None:
    """Put a running job back into the queue; wait a while for a controller that restarts.

    Raises:
        Rejected: it was refused to the end.
    """
    end = time.monotonic() + patience
    while True:
        try:
            call("scontrol", "requeue", job)
            return
        except Rejected as error:
            if not re.search(SILENT, str(error)) or time.monotonic() > end:
                raise
            time.sleep(3.0)


def order(verb: Literal["hold", "release"], arrays: Iterable[str]) -> None:
    """Keep the pending elements of arrays from starting, or let them start again."""
    for array in arrays:
        # An array of which some elements have ended is an error to scontrol, yet it does the rest.
        with contextlib.suppress(Rejected):
            call("scontrol", verb, array)


def cancel(jobs: Sequence[str], *options: str) -> None:
    """Cancel jobs, or with ``--signal`` only signal their processes.

    A job that has just ended by itself is no error. Filters such as ``--state`` must not be among
    the options: with one, naming a pending element of an array cancels the whole array.

    Raises:
        Rejected: the controller does not answer, or one may not.
    """
    for start in range(0, len(jobs), CALL_SIZE):
        try:
            call("scancel", *options, *jobs[start : start + CALL_SIZE])
        except Rejected as error:
            if re.search(SILENT + "|denied", str(error)):
                raise
