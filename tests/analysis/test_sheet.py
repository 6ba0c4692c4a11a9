"""The fidelity sheet: in ``lsa plan``, as Markdown, in the report and under a table."""

import re
from pathlib import Path

import pytest
from in_process import answer

from lsa_study.analysis.collect import collect
from lsa_study.analysis.html import page
from lsa_study.analysis.sheet import HIDDEN, sheet_of
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.config.contrast import under
from lsa_study.config.find import list_studies, tiers_of
from lsa_study.config.settings import flatten
from lsa_study.launch import plan

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [name for name in list_studies() if "paper" in tiers_of(name)]
WRITTEN = ("table1", "table6", "table8")


def rows_in(text, every):
    """The rows that a sheet's text names."""
    names = text.removeprefix("every row but ").split(", ")
    if text == "every row":
        return every
    return [row for row in every if (row in names) != text.startswith("every row but ")]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_setting_of_every_row_stands_there_once_with_its_value(name):
    one = study.load_study(name, tier="paper")
    found = {variant: {} for variant in one.variants}
    for entry in sheet_of(one).entries:
        for row in rows_in(entry.rows, [*found]):
            assert entry.setting not in found[row], (row, entry.setting)
            found[row][entry.setting] = entry.value
    for variant, settings in one.variants.items():
        values = flatten(settings.model_dump(mode="json"))
        left_out = {one for one in values.keys() - found[variant] if not under(one, HIDDEN)}
        assert all(values[one] is None for one in left_out)
        science = {one for one in flatten(settings.science()) if not under(one, HIDDEN)}
        assert science <= found[variant].keys() <= values.keys()
        assert found[variant]["train.batch_size"] == str(values["train.batch_size"])
        assert found[variant]["model.backbone"] == values["model.backbone"]


def test_the_scale_of_products_stands_there_though_it_is_null():
    found = sheet_of(study.load_study("table1", tier="paper")).entries
    scales = {(e.rows, e.kind): e.value for e in found if e.setting == "model.op.scale"}
    assert scales == {
        ("swin", "code"): "null",
        ("net4", "ours"): "null",
        ("every row but swin, net4", "ours"): "null",
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_it_fits_a_terminal_and_says_what_is_shared_once(name):
    lines = sheet_of(study.load_study(name, tier="paper")).text().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("augment.hflip 0.5" in line for line in lines) == 1
    assert "  known to differ" in lines
    assert "  assumed" in lines


@pytest.mark.parametrize("name", WRITTEN)
def test_the_written_sheets_are_those_of_the_data(name):
    written = (ROOT / f"results/paper/fidelity-{name}.md").read_text("utf-8")
    assert written == sheet_of(study.load_study(name, tier="paper")).markdown(), (
        f"write it: lsa plan {name} --tier paper --sheet > results/paper/fidelity-{name}.md"
    )
    assert "no source recorded" not in written


def test_remarks_stand_with_the_rows_they_concern():
    found = {name: sheet_of(study.load_study(name, tier="paper")) for name in SHIPPED}

    def rows(name, words):
        of = found[name]
        return {at for at, remark in of.differs + of.noted + of.assumed if words in remark}

    assert rows("table1", "d^-1/2") == {"net2, net3, net5, net6, net7"}
    assert rows("table2", "all four stages") == {"every row"}
    assert rows("table3", "all four stages") == set()
    assert rows("table3", "ViL's exact mode") == {"net7_n_sdc"}
    assert rows("table3", "16 GPUs") == rows("table5", "16 GPUs") == {"net7_n_unfold"}
    assert rows("table3", "as unfold leaves") == {"swin_n, net4_n, net6_n, net7_n_unfold"}
    assert rows("table7", "timed by unfold") == {"net7_n"}
    assert rows("table8", "VOLO-D4 are in neither") == {"volo_d4, volo_d4_448"}
    assert rows("table6", "every picture were square") == {
        "volo_lsa, volo_dwconv, volo_outlooker, volo_elsa"
    }
    assert rows("table6", "in Swin-T of Tables 6 and 7") == {"volo_dwconv"}
    assert rows("table8", "same as Swin") == {"swin, elsa"}
    assert rows("table6", "No code was released for DDF") == {"ddf"}, "a row's own note"


def test_plan_ends_with_it(monkeypatch, capfd):
    monkeypatch.setattr(plan, "check_models", lambda studies: "built")
    code, out, _ = answer(ROOT, "plan table1 --tier paper", capfd)
    sheet = sheet_of(study.load_study("table1", tier="paper"))
    assert code == 0
    assert out.endswith(f"models: built\n{sheet.text()}\n")
    code, out, _ = answer(ROOT, "plan table1 --tier paper --sheet", capfd)
    assert (code, out) == (0, sheet.markdown())
    code, out, err = answer(ROOT, "plan table1 --sheet", capfd)
    assert (code, out, err) == (2, "", "lsa: --sheet: tier toy has no sheet; give --tier paper\n")
    assert "Fidelity" not in answer(ROOT, "plan table1", capfd)[1]


@pytest.mark.parametrize(("tier", "there"), [("paper", True), ("toy", False)])
def test_report_and_notes_have_it_at_the_paper_tier_alone(tmp_path, tier, there):
    one, runs = study.load_study("table1", tier=tier), collect(tmp_path, tier)
    html = page([(one, runs)], [])
    assert html.count('<details class="sheet">') == there
    assert ("same as Swin" in html) == there
    notes = [note.text for note in build(one, runs).notes]
    differing = [text for text in notes if text.startswith("Known to differ from the article or")]
    assert len(differing) == there
    if there:
        assert re.search(
            r"every row: Drop path 0\.1.* lsa plan table1 --tier paper\.$", differing[0]
        )
        assert len(re.findall(r"<td>train\.epochs</td><td>310</td><td>article</td>", html)) == 1
