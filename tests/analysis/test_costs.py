"""Parameters and multiply-adds of every network of the article that can be built.

Counted here, measured with the released code (tests/golden/measured_params_macs.csv), and shown in
tables 6 and 8 beside the article's, from what benchmarks/costs.py counted.
"""

import csv
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from networks import on_meta

from lsa_study.analysis.article import columns_and_note, network_key
from lsa_study.analysis.measured import COUNTED
from lsa_study.config import study
from lsa_study.config.ledger import Claims
from lsa_study.errors import ConfigError
from lsa_study.measure import count
from lsa_study.models import build_model, from_settings

TESTS = Path(__file__).resolve().parents[1]

ROWS = {
    "Swin-T base": ("table4", "swin"),
    "ELSA HA only (lam=0,gamma=0,group 4)": ("table4", "elsa_noghost"),
    "ELSA HA+GH (lam=0,gamma=1,group 4)": ("table4", "elsa"),
    "Swin-T LSA": ("table6", "swin"),
    "Swin-T DwConv": ("table6", "dwnet"),
    "Swin-T D-DwConv": ("table6", "ddwconv"),
    "Swin-T DDF (k=7, 1 spatial head, se 0.2, 4 stages)": ("table6", "ddf"),
    "Swin-T ELSA": ("table6", "elsa"),
    "VOLO-D1 LSA (window 7, 6 heads, no qkv bias, rel. bias)": ("table6", "volo_lsa"),
    "VOLO-D1 Outlooker": ("table6", "volo_outlooker"),
    "VOLO-D1 ELSA (k=7, group 16, lam=0, gamma=1)": ("table6", "volo_elsa"),
    "Swin-S": ("table8", "swin_small"),
    "Swin-B": ("table8", "swin_base"),
    "Swin-L@224 w7": ("table8", "swin_large"),
    "Swin-L@384 w12": ("table8", "swin_large_384"),
    "ELSA-Swin-S (group 8)": ("table8", "elsa_swin_small"),
    "ELSA-Swin-B (group 8)": ("table8", "elsa_swin_base"),
    "ELSA-Swin-L@224 (group 8, window 7)": ("table8", "elsa_swin_large"),
    "ELSA-Swin-L@384 (group 8, window 12)": ("table8", "elsa_swin_large_384"),
    "VOLO-D1@384": ("table8", "volo_d1_384"),
    "VOLO-D3@224": ("table8", "volo_d3"),
    "VOLO-D3@448": ("table8", "volo_d3_448"),
    "VOLO-D4@224": ("table8", "volo_d4"),
    "VOLO-D4@448": ("table8", "volo_d4_448"),
    "VOLO-D5@224": ("table8", "volo_d5"),
    "VOLO-D5@512": ("table8", "volo_d5_512"),
    "ELSA-VOLO-D3@224 (k=7, group 16, lam=0)": ("table8", "elsa_volo_d3"),
    "ELSA-VOLO-D5@224 (k=7, group 16, lam=0)": ("table8", "elsa_volo_d5"),
}
"""Row of the measurements -> study and variant."""

NAMES = {
    "VOLO-D2@224": "volo_d2",
    "ELSA-VOLO-D2@224 (k=7, group 16, lam=0)": "elsa_volo_d2",
    "ELSA-VOLO-D4@224 (k=7, group 16, lam=0)": "elsa_volo_d4",
}
"""Row of the measurements -> network, where no study has it."""

NOT_BUILT = {
    # A reading without biases that the article's 27 M rule out; ours, with them, has 768 more.
    "VOLO-D1 DwConv (7x7, two 1x1)",
    # Another reading of the same row: an ordinary convolution, which is no layer of the study.
    "VOLO-D1 full 3x3 conv (9C^2+C), no projections",
}


def measured():
    with (TESTS / "golden" / "measured_params_macs.csv").open(encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


MEASURED = measured()


@functools.cache
def counted(model, side):
    network = on_meta(from_settings, model, image_size=side, num_classes=1000)
    return count(network, (3, side, side))


def counted_row(name, variant):
    settings = study.load_study(name, tier="paper").variants[variant]
    return counted(settings.model, settings.data.image_size)


def agree(found, row):
    assert found.params == int(row["measured_params"])
    raw = float(row["measured_gmacs_conv_linear_matmul"])
    macs = float(row["measured_gmacs_paper_convention"])
    assert found.macs_raw / 1e9 == pytest.approx(raw, rel=1e-3, abs=1e-4)
    assert found.macs / 1e9 == pytest.approx(macs, rel=1e-3, abs=1e-4)


def test_every_measurement_is_accounted_for():
    assert {*ROWS, *NAMES, *NOT_BUILT} == set(MEASURED)
    for row in NOT_BUILT:
        assert "exact" not in MEASURED[row]["verdict"]
        assert "inferred" not in MEASURED[row]["verdict"]


@pytest.mark.parametrize("row", ROWS)
def test_settings_agree_with_the_measurements(row):
    agree(counted_row(*ROWS[row]), MEASURED[row])


@pytest.mark.parametrize("row", NAMES)
def test_names_agree_with_the_measurements(row):
    agree(count(on_meta(build_model, NAMES[row]), (3, 224, 224)), MEASURED[row])


def rows(name):
    return [(name, variant) for variant in study.load_study(name, tier="paper").variants]


def kept():
    path = TESTS.parent / "results" / "benchmarks" / "costs.json"
    return json.loads(path.read_text("utf-8"))["networks"]


@pytest.mark.parametrize(("name", "variant"), [*rows("table6"), *rows("table8")])
def test_costs_shown_in_the_tables(name, variant):
    """Those that are counted anew, to the printed digit, and the article's as in its CSV."""
    loaded = study.load_study(name, tier="paper")
    file = loaded.file.variants[variant]
    found = counted_row(name, variant)
    network = kept()[network_key(loaded.variants[variant])]
    assert f"{name}/{variant}" in network.pop("rows")
    assert network == vars(found), "run python benchmarks/costs.py"
    csv_path = TESTS.parent / "results" / "paper" / f"{name}.csv"
    with csv_path.open(encoding="utf-8") as handle:
        (printed,) = [
            row
            for row in csv.DictReader(handle)
            if all(row[key] == str(value) for key, value in file.paper.items())
        ]
    article_params, article_macs = printed["params_m"], printed["flops_g"] or "none"
    columns, _ = columns_and_note(loaded, variant)
    assert columns["Params (article)"] == f"{found.params / 1e6:.2f} M ({article_params} M)"
    assert columns["GMACs (article)"] == f"{found.macs / 1e9:.2f} ({article_macs})"


def claimed():
    return {row for one in Claims.read() if one.metric in COUNTED for row in one.rows}


def test_nothing_is_kept_that_no_table_shows_and_no_claim_is_about():
    shown = {
        f"{name}/{row}"
        for name in ("table6", "table8", "ddf_table3", "ddf_table5", "stem")
        for row in study.load_study(name, tier="paper").variants
    }
    assert {row for network in kept().values() for row in network["rows"]} == shown | claimed()


@pytest.mark.parametrize("row", sorted(claimed()))
def test_costs_that_claims_are_judged_by(row):
    name, variant = row.split("/")
    settings = study.load_study(name, tier="paper").variants[variant]
    network = kept()[network_key(settings)]
    assert row in network.pop("rows")
    assert network == vars(counted_row(name, variant)), "run python benchmarks/costs.py"


def test_costs_of_other_works_are_those_of_their_networks():
    """Rates and warm-ups share a network; parameters as their releases have them."""
    found = {row: network for network in kept().values() for row in network["rows"]}
    assert found["ddf_table5/r50_ddf"]["params"] == 16_843_748
    assert found["ddf_table5/r101_ddf_add"]["params"] == 28_146_912
    assert found["ddf_table3/base"]["params"] == found["ddf_table5/r50"]["params"] == 25_557_032
    assert found["stem/patchify_20_none"]["params"] == 22_050_664
    assert found["stem/conv_bn_relu_05_long"]["params"] == 23_412_136
    assert sum("stem/" in network["rows"][0] for network in kept().values()) == 5


def test_other_settings_of_a_network_are_not_counted():
    """What moves a count is in the key; how the network is trained is not."""

    def found(*overrides):
        loaded = study.load_study("table8", tier="paper", only="volo_d3", overrides=overrides)
        columns, _ = columns_and_note(loaded, "volo_d3")
        return [columns[f"{cost} (article)"] for cost in ("Params", "GMACs")]

    assert found("train.epochs=3", "model.drop_path=0.1") == found()
    for override in ("model.op.stride=1", "data.image_size=480", "data.name=cifar10"):
        assert found("train.tokens.labels=plain", override) == ["? M (86 M)", "? (20.9)"]
    assert columns_and_note(study.load_study("table1"), "net7") == ({}, None)


def test_a_note_names_its_counts(tmp_path):
    text = (TESTS.parent / "experiments" / "table6.yaml").read_text("utf-8")
    text = text.replace("../results", f"{TESTS.parent}/results")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("{params} M here", "{parms} M here"), "utf-8")
    loaded = study.load_study(path, tier="paper")
    with pytest.raises(
        ConfigError, match=r"mine.yaml:\d+: \{parms\} is no text for notes; known: "
    ):
        columns_and_note(loaded, "volo_dwconv")
    circle = text.replace("variants:", 'notes: {again: "{again}"}\nvariants:')
    path.write_text(circle, "utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+: \{again\} is no text for notes"):
        columns_and_note(study.load_study(path, tier="paper"), "ddf")
    path.write_text(text.replace("costs.json", "none.json"), "utf-8")
    with pytest.raises(ConfigError, match=r"none.json: no counts .* run python benchmarks/costs"):
        columns_and_note(study.load_study(path, tier="paper"), "swin")


def rounds_to(value, printed):
    digits = len(printed.partition(".")[2])
    return f"{value:.{digits}f}" == printed


@pytest.mark.parametrize(("name", "variant"), [*rows("table6"), *rows("table8")])
def test_a_row_that_misses_the_article_says_so(name, variant):
    """Each cost that does not round to the article's is named in the row's note, both figures."""
    loaded = study.load_study(name, tier="paper")
    columns, note = columns_and_note(loaded, variant)
    for column, unit in (("Params (article)", " M"), ("GMACs (article)", "")):
        ours, article = re.fullmatch(
            rf"([\d.]+){unit} \((none|[\d.]+){unit}\)", columns[column]
        ).groups()
        if article == "none" or rounds_to(float(ours), article):
            continue
        assert note is not None, f"{variant}: {ours} is not {article}"
        words = " ".join(note.split())
        assert f"{ours} " in words, (variant, ours)
        assert f"{article} " in words, (variant, article)


def test_both_tables_are_shown_at_the_only_tier_they_have(tmp_path):
    """Costs and footnotes stand there before anything is trained; accuracies are empty."""
    told = subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", "table", "table6", "table8", "table1",
         "--results", tmp_path],
        capture_output=True, text=True, check=False, cwd=TESTS.parent,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert f"written to {tmp_path}/paper/tables\nwritten to {tmp_path}/toy/tables\n" in told.stdout
    for name in ("table6", "table8"):
        table = json.loads((tmp_path / "paper" / "tables" / f"{name}.json").read_text("utf-8"))
        text = (tmp_path / "paper" / "tables" / f"{name}.md").read_text("utf-8")
        text = text.replace("\\_", "_")
        loaded = study.load_study(name, tier="paper")
        assert [row["variant"] for row in table["rows"]] == list(loaded.variants)
        for row in table["rows"]:
            columns, note = columns_and_note(loaded, row["variant"])
            assert (row["acc1"]["mean"], row["acc1"]["n"], row["acc1"]["values"]) == (None, 0, [])
            assert {name: row[name] for name in columns} == columns
            assert row["marks"] or note is None
            assert " ".join((note or "").split()) in text
