"""Every setting of the paper tier has a source, and every source a setting with its value."""

import shutil
from pathlib import Path

import pytest
import yaml

from lsa_study.config import fidelity, study
from lsa_study.config.find import list_studies, tiers_of
from lsa_study.config.layers import known_paths
from lsa_study.config.settings import flatten
from lsa_study.errors import ConfigError
from lsa_study.launch.plan import plan_json

ROOT = Path(__file__).resolve().parents[2]
FILE = "experiments/base/fidelity.yaml"
SHIPPED = [name for name in list_studies() if "paper" in tiers_of(name)]


def loaded(folder=ROOT):
    paths = [folder / f"experiments/{name}.yaml" for name in SHIPPED]
    return [study.load_study(path, tier="paper") for path in paths]


def mistakes(studies):
    """Settings of rows without a source, then sources and remarks that fit no row."""
    lines, used = [], set()
    for one in studies:
        for variant, settings in one.variants.items():
            values = flatten(settings.model_dump(mode="json"))
            found = fidelity.sources(one, variant)
            assert found.keys() == values.keys()
            used.update(map(id, found.values()))
            lines += [
                f"{one.name}/{variant}: {setting} = {fidelity.shown(values[setting])} has no source"
                for setting, source in found.items()
                if source is fidelity.UNKNOWN
            ]
    recorded = fidelity.fidelity_of(studies[0])
    lines += [
        f"{setting}: no row has {fidelity.shown(source.value)} with {source.where}"
        for setting, known in recorded.settings.items()
        for source in known
        if id(source) not in used
    ]
    said = {text for one in studies for of in fidelity.remarks(one).values() for text in of}
    lines += [
        f"no row is one of which it says: {remark.text}"
        for remark in (*recorded.differs, *recorded.assumed)
        if remark.text not in said
    ]
    return lines


def changed(tmp_path, file, old, new):
    """The shipped experiments with one text of a file replaced."""
    for folder in ("experiments", "results/paper"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("runs"))
    path = tmp_path / file
    text = path.read_text("utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), "utf-8")
    return loaded(tmp_path)


def test_nothing_is_unsourced_and_no_source_is_stale():
    assert mistakes(loaded()) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("experiments/base/paper.yaml", "epochs: 310 ", "epochs: 300 ",
         ["table1/net7: train.epochs = 300 has no source", "train.epochs: no row has 310 with"]),
        ("experiments/base/paper.yaml", "clip_grad: 5.0 ", "clip_grad: 1.0 ",
         ["table4/elsa: train.clip_grad = 1 has no source", "train.clip_grad: no row has 5 with"]),
        ("experiments/base/presets.yaml", "swin_small, model.drop_path: 0.3",
         "swin_small, model.drop_path: 0.2",
         ["table8/swin_small: model.drop_path = 0.2 has", "model.drop_path: no row has 0.3 with"]),
        ("experiments/table1.yaml", "{model.op.terms: [q_rk, rq_k]}",
         "{model.op.terms: [qk, rq_k]}",
         ["table1/net5: model.op.terms = [qk, rq_k] has no",
          "model.op.terms: no row has [q_rk, rq_k]"]),
        (FILE, "segmentation configurations}\n    - {is: 0.5, code: timm",
         "segmentation configurations}\n    - {is: 0.4, code: timm",
         ["fig2/swin: augment.hflip = 0.5 has no source", "augment.hflip: no row has 0.4 with {}"]),
        (FILE, "where: {study: table7, row: net7_n}", "where: {study: table7, row: net7}",
         ["no row is one of which it says: Net7-N runs in the fused"]),
    ],
)  # fmt: skip
def test_a_planted_deviation_is_named(tmp_path, file, old, new, told):
    found = mistakes(changed(tmp_path, file, old, new))
    for line in told:
        assert any(one.startswith(line) for one in found), (line, found)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("  augment.hflip:", "  augment.hfilp:", "augment.hfilp is not a setting; did you mean"),
        ("{is: null, code: ELSA's training script, ", "{is: null, ", "give one source"),
        ("{is: 2, code: VOLO's network}", "{code: VOLO's network}", "give what the setting is"),
        ("{is: 2, code: VOLO's network}", "{is: 2, kode: VOLO}", "kode is not a setting"),
        ("{is: 1024, where: swin, code", "{is: 1024, where: swim, code", "'swim' is no condition"),
    ],
)
def test_a_mistake_in_the_file_is_refused(tmp_path, old, new, told):
    (one, *_) = changed(tmp_path, FILE, old, new)
    with pytest.raises(ConfigError) as refused:
        fidelity.sources(one, next(iter(one.variants)))
    assert told in str(refused.value)
    assert "fidelity.yaml" in str(refused.value)


def test_sizes_without_a_released_command_do_not_borrow_one():
    """VOLO's commands are for D1 to D3; what D4 and D5 take from them is our choice."""
    one = study.load_study("table8", tier="paper")
    rows = [name for name, s in one.variants.items() if s.model.backbone in ("volo_d4", "volo_d5")]
    assert len(rows) == 6
    borrowed = [
        (row, setting)
        for row in rows
        for setting, source in fidelity.sources(one, row).items()
        if source.place == "VOLO's command"
    ]
    assert borrowed == []
    assert fidelity.sources(one, "volo_d5_512")["train.batch_size"].kind == "ours"
    assert fidelity.sources(one, "volo_d3_448")["train.batch_size"].kind == "code"


def test_what_is_set_otherwise_has_no_source_of_the_article():
    """The command line's and an own study's values do not borrow the article's word."""
    one = study.load_study("table1", tier="paper", overrides=["train.epochs=30", "train.lr=1.0e-3"])
    found = fidelity.sources(one, "swin")
    assert [found[key].kind for key in ("train.epochs", "train.lr")] == ["ours", "ours"]
    assert found["train.epochs"].place == "--set"
    assert found["train.weight_decay"].kind == "article"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_plan_as_json_has_every_source(name):
    for run in plan_json(study.load_study(name, tier="paper"))["runs"]:
        settings = flatten(run["settings"])
        assert run["sources"].keys() == settings.keys() <= set(known_paths())
        for setting, source in run["sources"].items():
            assert source["source"] in fidelity.KINDS, setting
            assert source["place"] not in ("", fidelity.UNKNOWN.place), setting


def test_other_tiers_have_no_sources():
    assert "sources" not in plan_json(study.load_study("table1"))["runs"][0]


def test_values_are_shown_as_yaml_has_them():
    for value in (None, True, 0.1, 7, "1x", ["qk", "bias"], [0.08, 1.0], 0.00012):
        assert yaml.safe_load(fidelity.shown(value)) == value
