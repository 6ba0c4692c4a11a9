"""Every setting has a page: its meaning, type, default, who sets it, and if it makes the run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from in_process import answer

from lsa_study.config import explain, yaml
from lsa_study.config.find import list_studies
from lsa_study.config.layers import every_field, known_paths
from lsa_study.config.schema import meanings, properties_of, study_schema
from lsa_study.config.settings import Settings, flatten
from lsa_study.config.study import load_study

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "experiments/base/study.schema.json"
STUDIES = [path for path in sorted((ROOT / "experiments").glob("*.yaml"))
           if path.stem not in ("claims", "cluster")]  # fmt: skip


def test_a_summary_is_a_whole_sentence():
    heads = explain.keys()["model.op.heads"].summary
    assert heads.endswith("the backbone's own (Fig. 2): 1, 1x, 2x, or one per channel.")
    for key in explain.keys().values():
        assert key.summary.count("(") == key.summary.count(")"), key.path


def test_every_key_has_a_meaning():
    unsaid = [key.path for key in explain.keys().values() for f in key.forms if not f.meaning]
    assert not unsaid, f"write a sentence under these fields: {unsaid}"
    assert set(known_paths()) < set(explain.keys())


def test_settings_of_tasks_are_those_of_tasks():
    found = {path: key for path, key in explain.keys().items() if path.startswith("task")}
    assert found["task"].facts()[0] == (
        "type",
        "a group of settings; its kind is one of classify, detect, segment; default kind classify",
    )
    said = {path: [*key.meant(), *(fact for _, fact in key.facts())] for path, key in found.items()}
    for lines in said.values():
        assert not any("layer" in line or line.startswith("others") for line in lines)
    assert "segment: upernet; default upernet" in said["task.framework"]
    assert said["task.kind"][0].startswith("classify: one class for a whole image; detect: boxes")
    assert found["task.test_flip"].facts()[0][1].startswith("segment: true or false")
    assert found["task.upsample"].facts()[0][1].startswith("detect: one of nearest")
    layer = explain.keys()["model.op"].facts()[0][1]
    assert layer.startswith("a layer; its kind is one of unified, elsa")


def test_the_page_is_the_settings():
    written = (ROOT / "docs/settings.md").read_text("utf-8")
    assert written == explain.as_markdown(), "lsa explain --markdown > docs/settings.md"


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 12),
    reason="older versions of pydantic write the same schema otherwise",
)
def test_the_schema_in_the_checkout_is_the_settings():
    written = json.loads((ROOT / SCHEMA).read_text("utf-8"))
    assert written == study_schema(), f"lsa schema > {SCHEMA}"


def test_a_page_says_what_is_known(tmp_path, capfd):
    code, out, _ = answer(tmp_path, "explain train.lr", capfd)
    text = " ".join(out.split())
    assert code == 0
    for known in (
        "Peak learning rate", "number above 0", "no default", "toy: 0.002", "paper: 0.001",
        "preset volo_finetuning: 8e-06", "0.001: the article, section 6.1",
        "identity yes: another value is another run",
    ):  # fmt: skip
        assert known in text
    assert "no: it can move no number" in answer(tmp_path, "explain data.root", capfd)[1]
    heads = answer(tmp_path, "explain model.op.heads", capfd)[1]
    assert "dwconv: one of 1, 1x, 2x, C; default C" in heads
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "first", "number"),
    [("", "study", 100), ("train", "train", 20), ("batch_size", "train.batch_size", 2),
     ("resources", "resources", 6), ("variants", "variants", 10)],
)  # fmt: skip
def test_a_part_of_a_key_lists_what_it_may_mean(asked, first, number, tmp_path, capfd):
    code, out, _ = answer(tmp_path, f"explain {asked}", capfd)
    paths = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert (code, paths[0]) == (0, first)
    assert len(paths) >= number
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    ("command", "said"),
    [("explain trian.lr", "trian.lr: is not a setting; did you mean train.lr?"),
     ("explain lrr", "lrr: is not a setting; did you mean lr?"),
     ("explain xyzzy", "xyzzy: is not a setting; lsa explain names all"),
     ("explain train.lr --markdown", "--markdown: is a page of all settings; drop KEY")],
)  # fmt: skip
def test_a_wrong_key_names_the_nearest(command, said, tmp_path, capfd):
    code, out, err = answer(tmp_path, command, capfd)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_what_the_page_says_of_the_identity_is_so():
    """A setting that is given another value makes another run if and only if it says so."""
    base = load_study("table1", overrides=["evaluation.epoch=last"]).variants["swin"]
    old, keys = flatten(base.model_dump()), explain.keys()
    tried = set()
    for path, value in old.items():
        for other in (0, 1, 2, 3, 0.5, 16, "x", not value, "proxy", "cpu", "cifar10", "none", "ema",
                      "best", "swin_mini", "pad", "amp", "step", "epoch", "swin", "wandb",
                      "fused", ("qk",), "identity", "mask", "neighboring", "1", "same",
                      "rand-m9", "mix_first"):  # fmt: skip
            data = base.model_dump()
            *groups, last = path.split(".")
            inner = data
            for group in groups:
                inner = inner[group]
            inner[last] = other
            try:
                changed = Settings.model_validate(data)
            except ValueError:
                continue
            if flatten(changed.model_dump())[path] == value or path == "augment.order":
                continue  # the order is read where images are mixed alone
            moved = changed.identity() != base.identity()
            assert moved == dict(keys[path].facts())["identity"].startswith("yes"), path
            tried.add(path)
            break
    assert len(tried) > 0.8 * len(old), set(old) - tried


# -- the schema ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_experiment_file_names_the_schema_and_fits_it(path):
    jsonschema = pytest.importorskip("jsonschema")
    first = path.read_text("utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert (path.parent / found[1]).resolve() == (ROOT / SCHEMA).resolve()
    jsonschema.Draft202012Validator.check_schema(study_schema())
    jsonschema.Draft202012Validator(study_schema()).validate(yaml.read(path).data)


@pytest.mark.parametrize(
    ("change", "place"),
    [({"titel": "x"}, "$"), ({"factor": []}, "$.factor"), ({"set": {"train.lrr": 1}}, "$.set"),
     ({"set": {"train.lr": "fast"}}, "$.set['train.lr']"),
     ({"set": {"model.op": {"kind": "unified", "norms": "softmax"}}}, "$.set['model.op']"),
     ({"resources": {"gpu": 1}}, "$.resources")],
)  # fmt: skip
def test_an_editor_is_shown_mistakes(change, place):
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml.read(list_studies()["table4"]).data | change
    errors = list(jsonschema.Draft202012Validator(study_schema()).iter_errors(data))
    assert [error.json_path for error in errors] == [place]


def test_an_editor_is_shown_meanings():
    made = study_schema()
    assert made["properties"]["factor"]["description"].startswith("What may differ")
    dotted = made["$defs"]["Dotted"]["properties"]
    assert set(dotted) == set(known_paths())
    assert dotted["train.lr"]["description"].startswith("Peak learning rate")
    owners = {owner for _, owner, _ in every_field()}
    assert all(meanings(one).keys() <= properties_of(one).keys() for one in owners)


def test_a_copy_to_edit_has_the_schema_too(tmp_path, capfd):
    assert answer(tmp_path, "init", capfd)[0] == 0
    assert (tmp_path / SCHEMA).exists()


@pytest.mark.real_process
@pytest.mark.parametrize("command", ["explain train.lr", "schema"])
def test_no_torch_is_needed(command):
    code = (
        "import sys; from lsa_study import cli\n"
        f"sys.argv[1:] = {command.split()}\n"
        "try: cli.app()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
