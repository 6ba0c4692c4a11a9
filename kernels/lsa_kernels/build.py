"""Compile the C++ kernels on first use into a cache of the user's, and load them.

The library is keyed by the sources, the compiler and this processor's abilities, so that a home
directory shared by unlike machines holds one for each. No torch headers: it needs a C++ compiler
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
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
"""Of the attention kernels."""
PICTURES = SOURCES / "pictures"
"""Of the resampling of pictures: a library of its own, so that loading waits for seconds only."""
# -fno-math-errno lets sqrt be one instruction. Not -ffast-math: it would break masks and NaN.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno")
SECONDS = 300
LANES = ("", "8", "16")
"""Floats a vector may hold; empty means as many as the processor's registers do."""


class BuildError(RuntimeError):
    """The kernels cannot be had here; the message says why, in one line."""


@dataclass(frozen=True)
class Built:
    """A library, or the reason why there is none."""

    path: Path | None
    reason: str | None


def cache_folder() -> Path:
    """Where libraries are kept: ``LSA_KERNELS_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("LSA_KERNELS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lsa_kernels"


def built(sources: Path = SOURCES) -> Built:
    """Compile, or find what was compiled; once per process and number of lanes."""
    return _built(sources, _lanes(sources))


def _lanes(sources: Path) -> str:
    return os.environ.get("LSA_KERNELS_LANES", "") if sources == SOURCES else ""


@functools.cache
def _built(sources: Path, lanes: str) -> Built:
    try:
        return Built(_build(sources, lanes), None)
    except BuildError as error:
        return Built(None, str(error))


def library(sources: Path = SOURCES) -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        BuildError: they cannot be compiled here.
    """
    return _library(sources, _lanes(sources))


@functools.cache
def _library(sources: Path, lanes: str) -> ctypes.CDLL:
    found = _built(sources, lanes)
    if found.path is None:
        raise BuildError(found.reason or "not built")
    return ctypes.CDLL(str(found.path))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_missing() -> str | None:
    """Why there are no kernels here, or None; a constant to a compiled graph."""
    return built().reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def window_lanes() -> int:
    """How many windows the window kernel works on together; it pads to a multiple of them.

    Raises:
        BuildError: the kernels cannot be compiled here.
    """
    return int(library().window_lanes())


def build_info() -> str:
    """Say what was built, or why nothing was."""
    found = built()
    if found.path is None:
        return f"no C++ kernels: {found.reason}"
    return f"C++ kernels, {library().lanes()} floats a vector, {found.path}"


def _build(sources: Path, lanes: str) -> Path:
    if lanes not in LANES:
        raise BuildError(f"LSA_KERNELS_LANES={lanes!r} is unknown; give 8 or 16, or leave it out")
    flags = (*_flags(), *([f"-DLSA_LANES={lanes}"] if lanes else []))
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BuildError("no C++ compiler (g++) is on PATH")
    folder = cache_folder()
    name = "kernels" if sources == SOURCES else sources.name
    path = folder / f"{name}-{_key(compiler, sources, flags)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / path.name
            _compile(compiler, sources, part, flags)
            # Two processes may compile at once; each renames a whole file to the same name.
            part.replace(path)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written ({error.strerror})") from error
    return path


def _compile(compiler: str, sources: Path, part: Path, flags: tuple[str, ...]) -> None:
    """Compile every source at once, then link."""
    files = sorted(sources.glob("*.cpp"))
    objects = [part.with_name(f"{file.stem}.o") for file in files]
    commands = [
        [compiler, *flags, "-c", str(file), "-o", str(made)]
        for file, made in zip(files, objects, strict=True)
    ]
    link = [compiler, *flags, "-shared", *map(str, objects), "-o", str(part)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(_call, commands))
    _call(link)


def _flags() -> tuple[str, ...]:
    """The project's flags, then the user's ``CXXFLAGS``."""
    return (*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")))


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {SECONDS} s") from None
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise BuildError(f"{command[0]} failed: {words}")


def _key(compiler: str, sources: Path, flags: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False
    ).stdout
    parts = [version, " ".join(flags), platform.machine(), _processor()]
    files = [path for path in sorted(sources.iterdir()) if path.is_file()]
    parts += [path.read_text("utf-8") for path in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What instructions this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
