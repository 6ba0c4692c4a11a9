"""What studies take from other packages: found, checked and digested before it is a run."""

import json
import os
import re
import subprocess
import sys

import pytest
from in_process import answer
from outsiders import SWIN, write_package, write_study

from lsa_study import data
from lsa_study.config import imports
from lsa_study.config.contrast import check_contrast
from lsa_study.config.study import load_study
from lsa_study.errors import ConfigError, LsaError, Refused
from lsa_study.models.ablation_check import inactive_options


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The name of a package that Python finds."""
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=os.pathsep)
    sys.path.insert(0, "")  # what ``python -m`` puts there
    yield write_package(tmp_path / "path")
    sys.path.remove("")


def op(lab, what="Gated", **arguments):
    given = "".join(f", {name}: {value}" for name, value in arguments.items())
    return f'model.op: {{kind: "{lab}.ops:{what}"{given}}}'


def refusal(folder, rows, capfd, *, code=2, command="plan own.yaml", **how):
    """What a command says of a study that cannot be; it writes nothing."""
    write_study(folder, rows, **how)
    before = sorted(folder.rglob("*"))
    ended, out, err = answer(folder, command, capfd)
    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    new = {path for path in folder.rglob("*") if "__pycache__" not in path.parts} - {*before}
    assert not new
    return err


def test_arguments_get_their_defaults_and_the_package_its_digest(lab, tmp_path):
    path = write_study(tmp_path, {"swin": SWIN, "own": op(lab), "none": op(lab, gate='"none"')})
    study = load_study(path)
    check_contrast(study)
    kind = f"{lab}.ops:Gated"
    dumped = study.variants["own"].model_dump(mode="json")
    assert dumped["model"]["op"] == {"kind": kind, "gate": "own", "share": 1.0, "sides": [3, 5]}
    assert [*dumped["outside"]] == [lab]
    assert "outside" not in study.variants["swin"].model_dump(mode="json")
    assert len({run.identity for run in study.runs()}) == 3


def test_what_is_written_out_is_the_same_run(lab, tmp_path):
    short = load_study(write_study(tmp_path, {"a": op(lab)})).variants["a"]
    written = op(lab, gate="own", sides="[3, 5]", share="1.0")
    assert load_study(write_study(tmp_path, {"a": written})).variants["a"] == short


def test_another_source_of_the_package_is_another_run(lab, tmp_path):
    path = write_study(tmp_path, {"own": op(lab)})
    before = load_study(path).runs()[0].identity
    assert load_study(path).runs()[0].identity == before
    (tmp_path / "path" / lab / "helper.py").write_text("x = 1\n")
    assert load_study(path).runs()[0].identity != before


def test_an_argument_can_be_the_factor_and_be_set(lab, tmp_path):
    rows = {"own": op(lab), "none": op(lab, gate='"none"')}
    path = write_study(tmp_path, rows, factor="model.op.gate")
    check_contrast(load_study(path))
    both = load_study(path, overrides=["model.op.share=0.5"])
    assert both.variants["own"].model.op.arguments["share"] == 0.5
    rows["none"] = op(lab, gate='"none"', share="0.5")
    with pytest.raises(Refused, match=r"also changes model\.op\.share"):
        check_contrast(load_study(write_study(tmp_path, rows, factor="model.op.gate")))
    with pytest.raises(ConfigError, match=r"did you mean model\.op\.gate"):
        load_study(write_study(tmp_path, rows, factor="model.op.gat"))


def test_names_of_entry_points_stand_for_their_paths(lab, tmp_path):
    installed = tmp_path / "path" / f"{lab}-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {lab}\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[lsa_study.ops]\nmean_{lab} = {lab}.ops:Gated\n")
    rows = {"a": f"model.op: {{kind: mean_{lab}}}"}
    named = load_study(write_study(tmp_path, rows)).variants["a"]
    assert named == load_study(write_study(tmp_path, {"a": op(lab)})).variants["a"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{kind: "nolab.ops:Gated"}', "Python finds no module nolab; install its package"),
        ('{kind: "LAB.nops:Gated"}', "Python finds no module LAB.nops; install"),
        ('{kind: "LAB.ops:Gatd"}', "LAB.ops has no Gatd; did you mean Gated?"),
        ('{kind: "LAB.broken:Gated"}', "importing LAB.broken raised ModuleNotFoundError: No module "
         "named 'no_such_module_at_all'; mend the module"),
        ('{kind: "LAB.ops:Gated Mean"}', "'LAB.ops:Gated Mean' is no import path; write "
         "package.module:Name"),
        ('{kind: "LAB.ops:Gated", gat: own}', "gat is no argument of LAB.ops:Gated; did you mean "
         "gate?"),
        ('{kind: "LAB.ops:Gated", gate: mine}', "gate = 'mine' will not do; it should be 'own' or "
         "'none'"),
        ('{kind: "LAB.ops:Gated", share: "0.5"}', "share = '0.5' will not do; it should be a valid "
         "number"),
        ('{kind: "LAB.ops:Gated", sides: [3, a]}', "sides = [3, 'a'] will not do; it should be a "
         "valid integer"),
        ('{kind: "LAB.ops:Needs"}', "size is missing; LAB.ops:Needs has no default for it"),
        ('{kind: "LAB.ops:OneArgument"}', "takes (dim, *, size=3); it is called as "
         "OneArgument(dim, num_heads, **arguments)"),
        ('{kind: "LAB.ops:PI"}', "cannot be called; give a class or function"),
        ('{kind: "LAB.ops:Flat"}', "made (2, 14, 14, 16) float32 to (2, 196, 16) float32; it has "
         "to be (2, 14, 14, 16) float32"),
        ('{kind: "LAB.ops:Flat", how: half}', "float16; it has to be"),
        ('{kind: "LAB.ops:Flat", how: pair}', "gave a tuple; it has to give one tensor"),
        ('{kind: "LAB.ops:Flat", how: raises}', "it raised RuntimeError: no such luck; it has to "
         "map that to"),
        ('{kind: "LAB.ops:no_module"}', "made a int; give a class that is a torch.nn.Module"),
    ],
)  # fmt: skip
def test_operators_that_cannot_be(lab, tmp_path, capfd, written, said):
    rows = {"swin": SWIN, "own": f"model.op: {written.replace('LAB', lab)}"}
    err = refusal(tmp_path, rows, capfd)
    lines = [line for line in err.splitlines() if line.startswith("lsa: ")]
    assert len(lines) == 1, err
    assert said.replace("LAB", lab) in lines[0]
    assert "own.yaml:10" in lines[0] or "own: " in lines[0]


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ('data.name: "LAB.data:Nameless"', "has no fingerprint; give the class train, test"),
        ('model.backbone: "LAB.nets:Bare"', "takes no op, num_classes; a backbone is built as"),
        ('model.backbone: "LAB.nets:Tiny"', "takes no drop_path, so that model.drop_path=0.05 "
         "changes nothing; set that to 0.0"),
        ('model.backbone: "LAB.nets:Wide", model.drop_path: 0.0', "to (2, 9) float32; it has to be "
         "(2, 10) float32"),
        ('evaluation.metrics: {m: "LAB.metrics:margin"}', "evaluation.metrics.m"),
        ('evaluation.metrics: {mm: "LAB.metrics:greedy"}', "wants weights too; a metric is called "
         "as f(logits, targets)"),
        ('evaluation.metrics: {mm: "LAB.metrics:nan"}', "on random logits (64, 10) it gave nan; "
         "give one finite number"),
        ('evaluation.metrics: {mm: "LAB.metrics:vector"}', "it gave a Tensor (10,); give one"),
        ('evaluation.metrics: {mm: "LAB.metrics:raises"}', "raised ValueError: cannot; give one"),
        ("outside: {LAB: abc}", "outside is filled in by itself; drop it"),
    ],
)  # fmt: skip
def test_other_parts_that_cannot_be(lab, tmp_path, capfd, every, said):
    every = f", {every.replace('LAB', lab)}"
    assert said in refusal(tmp_path, {"swin": SWIN}, capfd, every=every)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("Empty", 2, "its fingerprint is ''; give a text that changes with the data"),
        ("Gone", 3, "raised FileNotFoundError: no spots here; mend the class, or what it reads"),
        ("Floats", 2, "train: images are (96, 3, 28, 28) torch.float64; give (N, 3, side, side)"),
        ("Few", 2, "num_classes is 2, its highest label 2; give at least 3"),
    ],
)
def test_data_that_cannot_be_are_refused_when_they_are_looked_at(lab, tmp_path, what, code, said):
    """Which is before anything runs."""
    path = write_study(tmp_path, {"swin": SWIN}, every=f', data.name: "{lab}.data:{what}"')
    with pytest.raises(LsaError, match=re.escape(said)) as refused:
        data.check(load_study(path).variants["swin"])
    assert refused.value.exit_code == code


def test_the_working_directory_does_not_count(tmp_path, capfd):
    lab = write_package(tmp_path)
    sys.path.insert(0, "")
    try:
        err = refusal(tmp_path, {"own": op(lab)}, capfd)
        with pytest.raises(imports.ImportFails, match="the working directory does not count"):
            imports.load(f"{lab}.ops:Gated")
    finally:
        sys.path.remove("")
    assert f"Python finds no module {lab}" in err


def test_a_dead_argument_is_found(lab, tmp_path):
    rows = {"one": op(lab, "Dead"), "two": op(lab, "Dead", idle=2)}
    (said,) = inactive_options(load_study(write_study(tmp_path, rows)).variants)
    assert "one and two differ in model.op.idle" in said
    rows = {"one": op(lab), "two": op(lab, share="0.5")}
    assert inactive_options(load_study(write_study(tmp_path, rows)).variants) == []


@pytest.mark.slow
def test_the_answer_is_json_whatever_modules_print_and_options_are_checked(lab, tmp_path):
    command = [sys.executable, "-m", "lsa_study.cli", "plan", "own.yaml"]
    write_study(tmp_path, {"own": op(lab, "Said")})
    told = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, check=True)
    settings = json.loads(told.stdout)["runs"][0]["settings"]
    assert settings["model"]["op"]["kind"] == f"{lab}.ops:Said"
    write_study(tmp_path, {"one": op(lab, "Dead"), "two": op(lab, "Dead", idle=2)})
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 4
    assert "the option does not reach them" in told.stderr


@pytest.mark.real_process
def test_no_study_of_ours_imports_torch():
    code = (
        "import sys; from lsa_study.config.study import load_study; "
        "from lsa_study.launch.plan import check_outside; "
        "check_outside(load_study('fig2').runs()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_argument_can_stand_in_a_grid(lab, tmp_path):
    path = write_study(tmp_path, {"own": op(lab)}, factor="model.op.gate")
    text = path.read_text().replace("baseline: own\n", "").split("variants:")[0]
    text = text.replace("set: {", f"set: {{{op(lab)}, ")
    path.write_text(f'{text}grid: {{model.op.gate: [own, "none"], model.op.share: [0.5, 1.0]}}\n')
    study = load_study(path)
    check_contrast(study)
    given = [one.model.op.arguments for one in study.variants.values()]
    assert {(one["gate"], one["share"]) for one in given} == {
        ("own", 0.5), ("own", 1.0), ("none", 0.5), ("none", 1.0)
    }  # fmt: skip
