"""What commands print: in any encoding, into closed pipes, without the escape codes of files."""

import json
import os
import pty
import subprocess
import sys

import pytest
from synthetic import write_study

CODES = "\x1b]0;title\x07\x1b[2J\x1b[8m\x9b\u202ehidden"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of which one run has failed, and everything that it says holds escape codes."""
    folder = tmp_path_factory.mktemp("results")
    write_study(folder, "table2", seeds=[0])
    (run,) = folder.glob("toy/runs/net7-s0-*")
    (run / "result.json").unlink()
    state = {"state": "failed", "cause": f"bug{CODES}", "message": CODES}
    (run / "status.json").write_text(json.dumps(state))
    (run / "attempts/001").mkdir(parents=True, exist_ok=True)
    (run / "attempts/001/log.txt").write_text(f"{CODES}\n")
    return folder


def lsa(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", *map(str, arguments)], stdout=stdout,
        stderr=subprocess.PIPE, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", ["status", "logs net7-s0", "table table2"])
def test_escape_codes_of_files_are_shown(results, command):
    found = lsa(*command.split(), "--results", results)
    text = found.stdout.decode()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*text}
    assert command.startswith("table") or r"\x1b[2J" in text


def test_a_terminal_gets_the_styles_of_commands_alone(results):
    leader, follower = pty.openpty()
    lsa("status", "--results", results, stdout=follower, TERM="xterm", COLUMNS="300")
    os.close(follower)
    text = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "\x1b[31mfailed" in text
    assert r"\x1b[8m\x9b\u202ehidden" in text
    assert not any(code in text for code in ("\x1b]", "\x1b[2J", "\x1b[8m", "\x9b"))


@pytest.mark.real_process
@pytest.mark.parametrize(
    ("encoding", "command"), [("ascii", "table table2"), ("iso-8859-1", "claims")]
)
def test_signs_that_an_encoding_lacks_are_replaced(results, encoding, command):
    plain = lsa(*command.split(), "--results", results, PYTHONIOENCODING="utf-8").stdout.decode()
    found = lsa(*command.split(), "--results", results, PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    assert found.stderr == b""
    text = found.stdout.decode(encoding)
    assert text.count("\n") == plain.count("\n")
    assert "?" not in text or "?" in plain


def test_output_that_nobody_takes(results):
    reader, writer = os.pipe()
    os.close(reader)
    found = lsa("status", "--results", results, stdout=writer)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, b"")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        found = lsa("status", "--results", results, stdout=full)
    assert found.returncode == 3
    assert found.stderr.startswith(b"lsa: standard output: cannot be written")
