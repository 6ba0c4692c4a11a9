"""From sources to a loaded library; whatever is in the way is a reason to do without, no crash."""

import os
import pwd
import shutil
import subprocess
import sys

import pytest

from lsa_kernels import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++)")
ANSWER = 'extern "C" int answer() { return 42; }\n'
UNSET = ("CXX", "CXXFLAGS", "LSA_KERNELS_LANES", "XDG_CACHE_HOME")


class Machine:
    """A machine with a cache of its own, where a library of one function is wanted."""

    def __init__(self, folder, environment):
        self.cache, self.sources = folder / "cache", folder / "sources"
        self.environment = environment
        self.sources.mkdir()
        self.write(ANSWER)
        environment.setattr(build, "_built", build._built.__wrapped__)
        for name in UNSET:
            environment.delenv(name, raising=False)
        environment.setenv("LSA_KERNELS_CACHE", str(self.cache))

    def write(self, code):
        (self.sources / "answer.cpp").write_text(code)

    def answer(self, **variables):
        """What the library answers, else why there is none: one line."""
        for name, value in variables.items():
            self.environment.setenv(name, str(value))
        found = build.built(self.sources)
        assert (found.path is None) == (found.reason is not None)
        if found.reason is None:
            return build.library(self.sources).answer()
        assert len(found.reason.splitlines()) == 1
        with pytest.raises(build.BuildError):
            build.library(self.sources)
        return found.reason


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def script(path, *lines):
    """A program of the shell."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o700)
    return path


def test_it_is_compiled_once_into_a_private_folder(machine):
    assert machine.answer() == 42
    (made,) = machine.cache.iterdir()
    assert machine.cache.stat().st_mode & 0o777 == 0o700
    before = made.stat().st_mtime_ns
    assert machine.answer() == 42
    assert made.stat().st_mtime_ns == before
    machine.write(ANSWER.replace("42", "43"))
    assert machine.answer() == 43


# -- compilers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", " ", "env g++", "env 'A=a b' g++ -O1", "{folder}/a\\ b"])
def test_cxx_is_split_as_make_does(machine, tmp_path, command):
    script(tmp_path / "a b", 'exec g++ "$@"')
    assert machine.answer(CXX=command.format(folder=tmp_path)) == 42


def test_cxxflags_are_split_too(machine):
    machine.write('extern "C" int answer() { return sizeof(TEXT) - 1; }')
    assert machine.answer(CXXFLAGS="""-DTEXT='"four"'""") == 4


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CXX": "no-such-compiler -x"}, "no C++ compiler (no-such-compiler) is on PATH; set CXX"),
        ({"PATH": "/no/such/folder"}, "no C++ compiler (g++) is on PATH"),
        ({"CXX": "g++ 'half"}, "CXX or CXXFLAGS cannot be split: No closing quotation"),
        ({"CXXFLAGS": '"'}, "CXX or CXXFLAGS cannot be split"),
        ({"CXX": "{old}"}, "old failed: c++: error: unrecognized command line option"),
        ({"CXX": "{foreign}"}, "foreign cannot be started: Exec format error"),
        ({"CXX": "{mute}"}, "mute failed: exit code 3"),
        ({"CXX": "{latin1}"}, "latin1 failed: error: "),
        ({"CXX": "{torn}"}, "what was compiled cannot be loaded"),
        ({"CXXFLAGS": "-no-such-flag"}, "failed: "),
        ({"CXXFLAGS": "-fsanitize=address"}, "what was compiled cannot be loaded"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else given.split(" ")[0],
)
def test_a_compiler_that_cannot_do_it(machine, tmp_path, variables, words):
    versioned = 'case "$*" in *--version*) echo 4.8; exit 0;; esac'
    script(
        tmp_path / "old", versioned,
        "echo In file included from a >&2",
        "echo 'c++: error: unrecognized command line option -std=c++17' >&2; exit 1",
    )  # fmt: skip
    (tmp_path / "foreign").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "foreign").chmod(0o700)
    script(tmp_path / "mute", "exit 3")
    script(tmp_path / "latin1", versioned, "printf 'error: \\351chec' >&2; exit 1")
    # What it makes ends early, as on a disk that keeps its errors to itself.
    script(
        tmp_path / "torn", 'g++ "$@" || exit', 'for last; do :; done',
        'case "$*" in *-shared*) truncate -s 4096 "$last";; esac',
    )  # fmt: skip
    programs = {path.name: path for path in tmp_path.iterdir()}
    given = {name: text.format(**programs) if "{" in text else text
             for name, text in variables.items()}  # fmt: skip
    assert words in machine.answer(**given)
    assert not list(machine.cache.glob("*.so"))


def test_a_library_that_crashes_when_it_is_loaded_is_left_out(machine):
    machine.write(f"{ANSWER}__attribute__((constructor)) static void die() {{ __builtin_trap(); }}")
    assert "what was compiled cannot be loaded" in machine.answer()
    assert not list(machine.cache.iterdir())


# -- caches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 4096, "zeros"])
def test_a_torn_library_is_compiled_again(machine, left):
    """A machine may stop between the rename and the disk; loading it could crash the process."""
    assert machine.answer() == 42
    (made,) = machine.cache.iterdir()
    whole = made.read_bytes()
    made.unlink()  # this process has the old one mapped
    made.write_bytes(bytes(len(whole)) if left == "zeros" else whole[:left])
    assert machine.answer() == 42
    assert made.read_bytes() == whole


def test_a_cache_of_a_relative_name(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert machine.answer(LSA_KERNELS_CACHE=".") == 42
    assert machine.answer(LSA_KERNELS_CACHE="some/where") == 42


def test_a_cache_in_the_way_of_a_file(machine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/cache"):
        said = machine.answer(LSA_KERNELS_CACHE=tmp_path / place)
        assert "cannot be written" in said
        assert "set LSA_KERNELS_CACHE to a folder" in said


def test_a_user_without_a_home(machine, monkeypatch):
    """As in a container that is started with a number that has no entry."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("LSA_KERNELS_CACHE")
    assert "no home folder; set LSA_KERNELS_CACHE" in machine.answer()
    assert machine.answer(XDG_CACHE_HOME=machine.cache) == 42


def test_what_others_could_have_put_there_is_not_run(machine):
    machine.cache.mkdir()
    machine.cache.chmod(0o777)
    assert "others can write to" in machine.answer()
    machine.cache.chmod(0o755)
    assert machine.answer() == 42


NOEXEC = """
mount -t tmpfs -o noexec,mode=700 tmpfs "$LSA_KERNELS_CACHE" || exit 77
exec "$@"
"""
ASK = """
import pathlib, shutil, sys
from lsa_kernels import build
print(build.built(pathlib.Path(sys.argv[1])).reason)
shutil.copy(sys.argv[2], build.cache_folder())
build._built.cache_clear()
print(build.built(pathlib.Path(sys.argv[1])).reason)
"""


def test_a_cache_that_may_hold_no_programs(machine, tmp_path):
    """Neither what is compiled there nor what was compiled elsewhere can be loaded from it."""
    assert machine.answer() == 42
    (made,) = machine.cache.iterdir()
    (tmp_path / "mounted").mkdir()
    found = subprocess.run(
        ["unshare", "--mount", "sh", "-c", NOEXEC, "sh", sys.executable, "-c", ASK,
         machine.sources, made],
        env=os.environ | {"LSA_KERNELS_CACHE": str(tmp_path / "mounted")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == 77 or "unshare" in found.stderr:
        pytest.skip("no mount of its own here")
    compiled, copied = found.stdout.splitlines()
    assert "what was compiled cannot be loaded" in compiled
    assert "the library cannot be loaded" in copied
    assert "set LSA_KERNELS_CACHE to a folder of your own that may hold programs" in compiled


# Does what g++ does, once both builders have come as far.
COMPILER = """
case "$*" in *" -c "*)
    touch "$0.$PPID"
    until [ "$(ls "$0".* | wc -l)" -ge 2 ]; do sleep 0.05; done
esac
exec g++ "$@"
"""
BUILDER = """
import pathlib, sys
from lsa_kernels import build
print(build.library(pathlib.Path(sys.argv[1])).answer())
"""


def test_two_processes_may_build_at_once(machine, tmp_path):
    """Neither begins to compile before the other does; each loads a whole library."""
    compiler = script(tmp_path / "compiler", COMPILER)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, machine.sources],
            env={**os.environ, "CXX": str(compiler)}, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate(timeout=120)[0] for process in processes] == ["42\n", "42\n"]
    assert len(list(tmp_path.glob("compiler.*"))) == 2
    assert len(list(machine.cache.iterdir())) == 1


def test_what_was_built_is_said_in_one_line(machine):
    words = "no C++ kernels: no C++ compiler (none) is on PATH; set CXX to one"
    machine.environment.setenv("CXX", "none")
    assert build.build_info() == words
    assert build.why_missing() == words.removeprefix("no C++ kernels: ")
    assert build.scratch_bytes() == 0
