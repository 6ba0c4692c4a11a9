"""The command line as a user meets it: exit codes, messages, nothing half-written."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import answer

from lsa_study import cli
from lsa_study.cli import options
from lsa_study.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def lsa(*arguments, **environment):
    """Run the command in its own process, as a shell would."""
    return subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.real_process
def test_plan_names_every_run():
    found = lsa("plan", "table1", "table3")
    assert found.returncode == 0, found.stderr
    assert "table1 (toy): 8 variants x 1 seed = 8 runs   baseline: swin" in found.stdout
    assert "contrast  ok: only model.op.terms differs" in found.stdout
    assert "13 distinct runs" in found.stdout


@pytest.mark.real_process
@pytest.mark.parametrize("command", ["--help", "plan table1", "runs"])
def test_what_is_quick_imports_neither_torch_nor_pandas(command):
    code = (
        f"import sys; from lsa_study import cli; sys.argv[1:] = {command.split()}\n"
        "try: cli.app()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_plan_as_json_has_the_promised_keys():
    found = json.loads(lsa("plan", "table2", "--json", "--seeds", "0-1").stdout)
    assert {"study", "factor", "baseline", "runs"} <= set(found)
    assert (found["study"], found["factor"], found["baseline"]) == (
        "table2",
        "model.op.norm",
        "net7",
    )
    assert len(found["runs"]) == 6
    assert {"name", "identity", "variant", "seed", "settings"} <= set(found["runs"][0])
    assert [run["seed"] for run in found["runs"]] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "zzz"], 2, "lsa: zzz: no such study; known: all,"),
        (["plan", "table1", "--tier", "big"], 2, "no such tier; known: toy, proxy, paper"),
        (["plan", "table1", "--only", "zzz"], 2, "matches no variant of table1"),
        (["plan", "table1", "--set", "train.epoch=3"], 2, "did you mean train.epochs?"),
        (["plan", "table1", "--set", "train.lr=1e-3"], 2, "write it like 1.0e-3"),
        (["plan", "table3", "--set", "model.op.size=8"], 2, "give an odd size"),
        (
            ["plan", "table1", "--set", "evaluation={crop: none, crop_share: 0.9}"],
            2,
            "evaluation: crop_share=0.9 changes nothing with crop='none'",
        ),
        (
            [
                "plan",
                "table8",
                "--tier",
                "paper",
                "--only",
                "swin_large",
                "--set",
                "train.start.map=null",
            ],
            2,
            "train.start: head='mapped' but map is null",
        ),
        (
            [
                "plan",
                "table6",
                "--tier",
                "paper",
                "--only",
                "dwnet",
                "--set",
                "runtime.accumulate=16",
            ],
            2,
            "cannot be cut into 16 parts of a multiple of 128 images",
        ),
        (["plan", "table1", "--seeds", "two"], 2, "not seeds; write 0-2 or 0,3,5"),
        (["plan", "table1", "--seeds", "3-1"], 2, "holds no seed"),
        (["plan", "table1", "--seeds", "4-0,7"], 2, "--seeds 4-0: holds no seed; write the small"),
        (["plan", "table1", "--only", "swin,"], 2, "--only swin,: names nothing at a comma; write"),
        (
            ["plan", "table1", "table4", "--only", "nosuch,elsa"],
            2,
            "lsa: --only nosuch: matches no variant of table1, table4",
        ),
        (["plan", "table1", "--results", ""], 2, "names no folder; give one"),
        (["plan", "table1", "--allow-confound", "train.l"], 2, "train.l: is not a setting; did"),
        (
            ["plan", "table1", "--set", "train.lr=1", "--set", "train.lr=2"],
            0,
            "lsa: --set train.lr=1: --set train.lr=2 counts, the later one\n",
        ),
        (
            ["plan", "table1", "--grid", "train.epochs=1,2", "--grid", "train.epochs=3,4"],
            0,
            "lsa: --grid train.epochs=1,2: --grid train.epochs=3,4 counts, the later one\n",
        ),
        (
            ["plan", "table1", "--grid", "train.lr=1,2", "--set", "train.lr=3"],
            2,
            "lsa: --set train.lr=3: train.lr makes the rows of the grid; drop it, or give its",
        ),
        (
            ["plan", "terms_by_area", "--set", "model.op.application=window"],
            2,
            "lsa: --set model.op.application=window: model.op.application makes the rows of the",
        ),
        (["run", "table1", "--results", "README.md"], 2, "README.md is a file; give a folder"),
        (["plan", "experiments/tabel4.yaml"], 2, "no such file; did you mean experiments/table4"),
        (["plan", "tabl1", "tabel4"], 2, "table1? Or give a path to a .yaml\nlsa: tabel4: no such"),
        (["new", "study", "all"], 2, "lsa new: all means something else to lsa; give another name"),
        (["plan", "table1", "--nonsense"], 2, "No such option"),
        (["plan"], 2, "Missing argument"),
        (["plan", "tabel1"], 2, "tabel1: no such study; did you mean table1?"),
        (["plan", "table1", "--tier", "pqper"], 2, "no such tier; did you mean paper?"),
        (
            ["plan", "table1", "--only", "swni"],
            2,
            "matches no variant of table1; did you mean swin?",
        ),
        (["plan", "table1", "--seeds", "0-99999999999"], 2, "--seeds 0-99999999999: not seeds"),
        (["plan", "table1", "--seeds", "0-999999999"], 2, "--seeds: not up to 100000 seeds"),
        (["plan", "table1", "--seeds", "²"], 2, "not seeds; write 0-2 or 0,3,5"),
        (["plan", "table1", "--set", "train.lr={a: 1, a: 2}"], 2, "a is set twice"),
        (["why", "table1", "swni"], 2, "swni: is no row of table1; did you mean swin?"),
        (["status", "tabel1"], 2, "did you mean table1?"),
        (["bench", "elsa_swin_tny"], 2, "did you mean elsa_swin_tiny?"),
        (["claims", "--tier", "tyo"], 2, "no such tier; did you mean toy?"),
        (["retry", "--cause", "oom-hots"], 2, "no such cause; did you mean oom-host?"),
    ],
)
def test_bad_input_ends_with_a_message_and_exit_code_2(arguments, code, message):
    found = lsa(*arguments, COLUMNS="200")
    assert found.returncode == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_two_factors_are_refused_with_exit_code_4(tmp_path):
    text = (ROOT / "experiments/table2.yaml").read_text()
    text = text.replace("{model.op.norm: filter_norm}", "{model.op.norm: filter_norm, train.lr: 1}")
    path = tmp_path / "mine.yaml"
    text = text.replace("study: table2", "study: mine")
    path.write_text(text.replace("../results", str(ROOT / "results")))
    found = lsa("plan", path)
    assert found.returncode == 4
    assert "net7_filter_norm also changes train.lr (0.002 -> 1.0)" in found.stderr
    assert lsa("plan", path, "--allow-confound", "train.lr").returncode == 0


def test_an_unknown_preset_ends_with_exit_code_2(tmp_path):
    text = (ROOT / "experiments/table4.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("baseline: swin", "baseline: swin\nuse: [swin_smal]"))
    found = lsa("plan", path)
    assert found.returncode == 2
    message = "swin_smal is no preset of experiments/base/presets.yaml; did you mean swin_small?"
    assert found.stderr == f"lsa: {path}:8: {message}\n"
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "command",
    ["status", "logs swin", "why table1 swin", "diff a b", "claims", "track swin", "retry",
     "cancel swin", "gc", "table table1", "plots table1", "report table1"],
)  # fmt: skip
def test_a_mistyped_results_folder_is_not_made(tmp_path, command):
    (tmp_path / "results").mkdir()
    found = lsa(*command.split(), "--results", tmp_path / "reslts")
    assert found.returncode == 2, found.stderr
    folder = tmp_path / "results"
    assert f"reslts: no such folder; did you mean {folder}?" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_only_commands_that_write_take_a_folder_that_is_not_there(tmp_path):
    found = lsa("status", "--results", tmp_path / "none")
    assert found.returncode == 2
    assert "no such folder; give the one that lsa run has made" in found.stderr
    assert lsa("table", "table2", "--results", tmp_path / "new").returncode == 0


def test_missing_data_ends_with_exit_code_3_and_leaves_nothing(tmp_path):
    found = lsa("run", "table1", "--tier", "proxy", "--only", "swin", "--results", tmp_path / "r",
               LSA_DATA=str(tmp_path))  # fmt: skip
    assert found.returncode == 3, found.stderr
    assert str(tmp_path) in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["plan", "run", "launch", "rehearse"])
@pytest.mark.parametrize(
    ("study", "kind", "package"),
    [("table9", "detect", "pycocotools"), ("table10", "segment", "segmentation_models_pytorch")],
)
def test_a_missing_package_is_said_before_anything_is_queued(
    tmp_path, monkeypatch, capfd, command, study, kind, package
):
    monkeypatch.setitem(sys.modules, package, None)
    results = tmp_path / "r"
    code, _, said = answer(tmp_path, f"{command} {study} --tier toy --results {results}", capfd)
    assert code == 3
    assert said == (
        f"lsa: task.kind='{kind}': the package {package} is not installed; "
        "pip install 'lsa_study[detection]'\n"
    )
    assert not results.exists()


def test_a_results_folder_that_cannot_be_made_ends_with_exit_code_3(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = lsa("run", "table1", "--only", "swin", "--results", tmp_path / "file" / "results")
    assert found.returncode == 3, found.stderr
    assert "cannot be written" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_later_of_two_settings_stands_in_its_own_place():
    """What is set between them holds the first one, not the later one."""
    whole = "model.op={kind: unified, norm: softmax, application: window, terms: [qk], size: 5}"
    sets = ("--set", "model.op.size=9", "--set", whole, "--set", "model.op.size=3")
    found = lsa("plan", "table1", "--json", "--only", "swin", *sets)
    assert found.returncode == 0, found.stderr
    assert (
        found.stderr == "lsa: --set model.op.size=9: --set model.op.size=3 counts, the later one\n"
    )
    assert '"size": 3' in found.stdout


def swallows():
    with contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGINT)


def wraps():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        raise ValueError("of a library") from error


@pytest.mark.parametrize("work", [swallows, wraps])
def test_an_interrupt_ends_as_one_whatever_it_meets(tmp_path, monkeypatch, capfd, work):
    monkeypatch.setattr(cli, "app", work)
    assert answer(tmp_path, "report", capfd) == (130, "", "lsa: interrupted\n")


def test_seeds_are_read():
    assert options.parse_seeds(None) is None
    assert options.parse_seeds("0-2") == [0, 1, 2]
    assert options.parse_seeds("4,0-1,4") == [4, 0, 1]
    with pytest.raises(ConfigError):
        options.parse_seeds("1-")
