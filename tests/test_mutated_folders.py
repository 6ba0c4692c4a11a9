"""Thousands of damaged results folders: each is reported on as far as it goes, none ends a command.

Files below ``results/toy`` are changed at random, as bytes, as values, or into something that is no
file, and read by commands in this process. Some dozens are tried every time, all of them by
``pytest -m exhaustive``.
"""

import contextlib
import json
import os
import shutil
import unicodedata

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import answer
from synthetic import write_study

from lsa_study.analysis.collect import collect
from lsa_study.files import write_json

COMMANDS = (
    "status", "status --json", "status table4", "table table4", "claims --json", "logs swin-s0",
    "logs elsa-s0", "why table4 elsa --json", "gc table4 --dry-run", "plan table4",
    "diff swin-s0 elsa-s0", "retry table4", "status swin-s1",
)  # fmt: skip
ODD = (
    None, True, -1, 0, 10**400, 2**63, 1e308, float("nan"), float("inf"), "", "x", "\x1b]0;x\x07",
    "\ud800", [], {}, [[]], {"a": {}}, 900.0, "../../x", "running", 1e18, "9" * 5000,
)  # fmt: skip
TEXTS = (
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}" * 3, b"\xff\xfe", b"\x00" * 64, b"[" * 100_000,
    b'{"a":' * 5000, b"9" * 5000, b"\x1b]0;x\x07", b"a: &a [*a]", b"settings: {}", b"- 1\n- 2",
)  # fmt: skip
NAMES = ("swin-s0", "-", "x-", "swin-s0-zzzzzzzzzz", "a\nb-s0-0123456789", "\x1b-s0-0123456789")


def fill(folder):
    """Ended runs, one that failed and one under way, what was collected, and launch records."""
    results = folder / "results"
    runs = {run.name: run for run in write_study(results, "table4", seeds=[0, 1]).runs()}
    collect(results, "toy", update=True)
    first, second = sorted(runs)[:2]
    for name, state in ((first, "failed"), (second, "running")):
        run = results / "toy" / "runs" / name
        (run / "result.json").unlink()
        write_json(run / "status.json", {
            "state": state, "heartbeat": 1.0, "epoch": 1, "epochs": 3, "attempt": 1,
            "cause": "bug", "message": "KeyError: \x1b]0;x\x07", "acc1": 50.0,
        })  # fmt: skip
        write_json(run / "owner.json", {"host": "h", "pid": 1, "start": 1.0, "token": "t"})
        (run / "attempts" / "001").mkdir()
        (run / "attempts" / "001" / "log.txt").write_text("Traceback \x1b[2J\n")
    launch = results / "toy" / "launch"
    for name in ("20260101-000000-abcdef", "lives", "cancelled"):
        (launch / name).mkdir(mode=0o700, parents=True)
    launch.chmod(0o700)
    write_json(launch / "20260101-000000-abcdef" / "array.json", {
        "key": "20260101-000000-abcdef", "runs": [first, second], "study": "table4", "user": "0",
        "resources": {"nodes": 1, "gpus": 1, "cpus": 1, "memory_gb": 1, "hours": 1.0},
        "created": 1.0, "job": "12",
    })  # fmt: skip
    life = {"job": "12_0", "restart": 0, "start": 1.0, "host": "h", "gpus": 1, "begun_at": [0, 0]}
    lives = launch / "lives" / f"{runs[first].identity}.jsonl"
    lives.write_text(json.dumps(life) + "\n" + json.dumps(life | {"end": 2.0, "why": "node"}))
    held = {"message": "m", "runs": [first], "count": 1, "arrays": ["12"]}
    write_json(launch / "held.json", held)


def change(folder, draw):
    """Change one file, as a whole or in a value, or what lies at its place."""
    files = sorted(
        path for path in (folder / "results").rglob("*") if path.is_file() and not path.is_symlink()
    )
    path = draw(st.sampled_from(files))
    content = path.read_bytes()
    way = draw(st.sampled_from(["value", "value", "text", "bytes", "cut", "place", "copy"]))
    if way == "value" and path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        data = {"state": 1}
        with contextlib.suppress(ValueError, TypeError, IndexError, RecursionError):
            data = {**json.loads(lines[-1])} or data
        key = draw(st.sampled_from(sorted(data)))
        odd = draw(st.sampled_from(ODD))
        path.write_text("\n".join([json.dumps(data | {key: odd})] * max(1, len(lines))))
    elif way == "value" and path.suffix == ".parquet":
        runs = pd.DataFrame({"identity": ["x"]})
        with contextlib.suppress(OSError, ValueError):
            runs = pd.read_parquet(path)
        column = draw(st.sampled_from(sorted(runs.columns)))
        odd = draw(st.sampled_from([one for one in ODD if isinstance(one, str | float | None)]))
        with contextlib.suppress(UnicodeEncodeError):
            runs.assign(**{column: odd}).to_parquet(path)
    elif way == "value" and path.suffix == ".yaml":
        lines = content.decode("utf-8", "replace").splitlines() or ["x"]
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = (
            f"{lines[at].partition(':')[0]}: {draw(st.sampled_from(['x', '[', '1e9', '{}']))}"
        )
        path.write_text("\n".join(lines))
    elif way == "bytes" and content:
        at = draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :])
    elif way == "cut":
        path.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif way == "place":
        path.unlink()
        places = (
            lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to(path),
            lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("/nowhere"), lambda: None,
        )  # fmt: skip
        draw(st.sampled_from(places))()
    elif way == "copy":
        runs = folder / "results" / "toy" / "runs"
        name = draw(st.sampled_from(NAMES) | st.just("copy-of-" + next(runs.iterdir()).name))
        with contextlib.suppress(OSError):
            shutil.copytree(next(runs.iterdir()), runs / name, symlinks=True)
    else:
        path.write_bytes(draw(st.sampled_from(TEXTS)))


def check(folder, command, capfd):
    """Run a command in a folder; it ends with a known code and no traceback."""
    code, out, err = answer(folder, f"{command} --results results", capfd)
    assert code in (0, 1, 2, 3, 4), (command, code, err)
    assert "Traceback" not in err, (command, err)
    shown = {sign for sign in out + err if unicodedata.category(sign) in ("Cc", "Cs")}
    assert shown <= {"\n", "\t"}, (command, out, err)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fill(folder)
    return folder


QUIET = {
    "deadline": None, "database": None, "derandomize": True, "phases": [Phase.generate],
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                              HealthCheck.data_too_large],
}  # fmt: skip


def damage_and_read(whole, tmp_path, data, capfd):
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    for _ in range(data.draw(st.integers(1, 2))):
        change(folder, data.draw)
    for command in data.draw(st.permutations(COMMANDS))[:3]:
        check(folder, command, capfd)


@given(st.data())
@settings(max_examples=60, **QUIET)
def test_a_damaged_folder_is_reported_on(whole, tmp_path, capfd, data):
    damage_and_read(whole, tmp_path, data, capfd)


@pytest.mark.exhaustive
@given(st.data())
@settings(max_examples=2000, **QUIET)
def test_two_thousand_damaged_folders_are_reported_on(whole, tmp_path, capfd, data):
    damage_and_read(whole, tmp_path, data, capfd)


def test_the_whole_folder_is_read_by_all_commands(whole, capfd):
    for command in COMMANDS:
        check(whole, command, capfd)
