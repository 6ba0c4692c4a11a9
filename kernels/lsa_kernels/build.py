"""Compile the C++ kernels on first use into a cache of the user's, and load them.

The library is keyed by the sources, the compiler and this processor's abilities, so that a home
directory shared by unlike machines holds one for each. Whatever goes wrong on the way to a loaded
library is a reason to do without it, never a crash. No torch headers: it needs a C++ compiler
alone and has no ABI to break.

A vector holds as many floats as the processor's registers do; ``LSA_KERNELS_LANES`` (8 or 16) in
the environment asks for another number. It is read at every call: one process may use both.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")

SOURCES = Path(__file__).parent / "csrc"
"""Of the attention kernels."""
PICTURES = SOURCES / "pictures"
"""Of the resampling of pictures: a library of its own, so that loading waits for seconds only."""
# -fno-math-errno lets sqrt be one instruction. Not -ffast-math: it would break masks and NaN.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno")
SECONDS = 300
LANES = ("", "8", "16")
"""Floats a vector may hold; empty means as many as the processor's registers do."""
ANOTHER = "set LSA_KERNELS_CACHE to a folder of your own that may hold programs"
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"


class BuildError(RuntimeError):
    """The kernels cannot be had here; the message says why, in one line."""


@dataclass(frozen=True)
class Built:
    """A library, compiled and loaded, or the reason why there is none."""

    path: Path | None
    reason: str | None
    loaded: ctypes.CDLL | None = None


def cache_folder() -> Path:
    """Where libraries are kept: ``LSA_KERNELS_CACHE``, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get("LSA_KERNELS_CACHE") or f"{base}/lsa_kernels"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError:
        raise BuildError(f"{chosen}: there is no home folder; {ANOTHER}") from None


def built(sources: Path = SOURCES) -> Built:
    """Compile, or find what was compiled, and load it; once per process and number of lanes."""
    return _built(sources, os.environ.get("LSA_KERNELS_LANES", "") if sources == SOURCES else "")


@functools.cache
def _built(sources: Path, lanes: str) -> Built:
    try:
        path = _build(sources, lanes)
        return Built(path, None, ctypes.CDLL(str(path)))
    except BuildError as error:
        return Built(None, str(error))
    except OSError as error:
        return Built(None, f"the library cannot be loaded ({error}); {ANOTHER}")


def library(sources: Path = SOURCES) -> ctypes.CDLL:
    """The kernels.

    Raises:
        BuildError: they cannot be compiled or loaded here.
    """
    found = built(sources)
    if found.loaded is None:
        raise BuildError(found.reason or "not built")
    return found.loaded


def constant_in_graphs(function: Answer) -> Answer:
    """Mark as torch.compiler.assume_constant_result does; that imports all of the compiler."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs
def why_missing() -> str | None:
    """Why there are no kernels here, or None; a constant to a compiled graph."""
    return built().reason


@constant_in_graphs
def vector_lanes() -> int:
    """How many floats a vector of the kernels holds.

    Raises:
        BuildError: the kernels cannot be compiled here.
    """
    return int(library().lanes())


def window_lanes(windows: int, *, tables: bool) -> int:
    """How many windows the window kernel works on together; it pads to a multiple of them.

    Args:
        windows: of all images. tables: whether it reads any, which are loaded once for all lanes.

    Raises:
        BuildError: the kernels cannot be compiled here.
    """
    lanes = vector_lanes()
    return 2 * lanes if tables and windows >= 2 * lanes else lanes


def scratch_bytes() -> int:
    """The most scratch memory that calls of this process held at once since this was asked last.

    0 where there are no kernels.
    """
    loaded = built().loaded
    if loaded is None:
        return 0
    loaded.most_scratch.restype = ctypes.c_int64
    return int(loaded.most_scratch())


def build_info() -> str:
    """Say what was built, or why nothing was."""
    found = built()
    if found.loaded is None:
        return f"no C++ kernels: {found.reason}"
    return f"C++ kernels, {found.loaded.lanes()} floats a vector, {found.path}"


def _build(sources: Path, lanes: str) -> Path:
    if lanes not in LANES:
        raise BuildError(f"LSA_KERNELS_LANES={lanes!r} is unknown; give 8 or 16, or leave it out")
    try:
        compiler, more = (shlex.split(os.environ.get(name, "")) for name in ("CXX", "CXXFLAGS"))
    except ValueError as error:
        raise BuildError(f"CXX or CXXFLAGS cannot be split: {error}") from None
    compiler = compiler or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"no C++ compiler ({compiler[0]}) is on PATH; set CXX to one")
    command = [*compiler, *FLAGS, *more, *([f"-DLSA_LANES={lanes}"] if lanes else [])]
    name = "kernels" if sources == SOURCES else sources.name
    stem = f"{name}-{_key(compiler, sources, command)}"
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            raise BuildError(f"others can write to {folder}, and be run from it; {ANOTHER}")
        # Loading a torn file can crash the process: its name says what it has to hold.
        for path in folder.glob(f"{stem}-*.so"):
            if path.stem == f"{stem}-{_digest(path)}":
                return path
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / "made.so"
            sys.stderr.write(f"lsa_kernels: compiling {name}, once: about a minute...\n")
            _compile(command, sources, part)
            # Where loading crashes, it is not this process that does.
            failed = f"what was compiled cannot be loaded; {ANOTHER}"
            _call([sys.executable, "-I", "-c", LOAD, str(part)], failed)
            # Two processes may compile at once; each renames a whole file.
            return part.replace(folder / f"{stem}-{_digest(part)}.so")
    except OSError as error:
        raise BuildError(f"{folder} cannot be written ({error.strerror}); {ANOTHER}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(command: list[str], sources: Path, part: Path) -> None:
    """Compile every source at once, then link."""
    files = sorted(sources.glob("*.cpp"))
    objects = [part.with_name(f"{file.stem}.o") for file in files]
    with ThreadPoolExecutor() as pool:
        made = zip(files, objects, strict=True)
        list(pool.map(lambda one: _call([*command, "-c", str(one[0]), "-o", str(one[1])]), made))
    _call([*command, "-shared", *map(str, objects), "-o", str(part)])


def _call(command: list[str], failed: str = "") -> str:
    """Run a command, and give what it printed; ``failed`` is what to say if it cannot do it."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            check=False, timeout=SECONDS, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BuildError(f"{shlex.join(command[:2])} took longer than {SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        errors = [line for line in lines if "error" in line.lower()]
        raise BuildError(f"{failed or f'{command[0]} failed'}: {(errors or lines)[0]}")
    return done.stdout


def _key(compiler: list[str], sources: Path, command: list[str]) -> str:
    version = _call([*compiler, "--version"])
    parts = [version, *command, platform.machine(), _processor()]
    parts += [path.read_text("utf-8") for path in sorted(sources.iterdir()) if path.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What instructions this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
