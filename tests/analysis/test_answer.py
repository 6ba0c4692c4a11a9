"""What limits local self-attention: the parts of report and README, from the runs alone."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import write_run

from lsa_study.analysis import answer as parts
from lsa_study.analysis.answer import MARKS, answer, renew
from lsa_study.analysis.collect import collect
from lsa_study.analysis.contrasts import Contrast
from lsa_study.analysis.html import page, write_report
from lsa_study.analysis.inference import ALPHA, Noise
from lsa_study.analysis.statistics import Estimate
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
EVERY = ("Net7 (identity)", "LSA (C)")
"""Rows that end without an accuracy in the invented runs."""


def loaded(results=None, tier="proxy"):
    return [study.load_study(name, tier=tier, recall=results) for name in study.ARTICLE]


def write(results, seeds, leave=lambda run: False, **how):
    for one in loaded():
        for run in one.runs():
            if run.seed in seeds and not leave(run):
                write_run(results, run, **how)
    return results


def answered(results):
    runs = collect(results, "proxy")
    return answer([build(one, runs) for one in loaded(results)], runs)


def lines_of(found):
    """All lines of differences by their names."""
    return {line[0]: line for part in found.parts if part.header == parts.HEADER
            for line in part.lines}  # fmt: skip


def short(found):
    return " ".join([found.parts[0].said, *(line for (line,) in found.parts[0].lines)])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All rows with the five declared seeds."""
    return write(tmp_path_factory.mktemp("full"), range(5))


@pytest.fixture(scope="module")
def every(full):
    return answered(full)


def test_without_runs_it_says_what_would_be_asked(tmp_path):
    found = answered(tmp_path)
    assert short(found).startswith("Nothing was run yet")
    assert "Of 21 differences: 0 clear, 0 not clear, 21 without a number." in short(found)
    assert {line[1:3] for line in lines_of(found).values()} == {("–", "–")}
    assert all(line[4].startswith("not run") for line in lines_of(found).values())
    assert "nothing is known of their noise" in found.markdown()


def test_the_article_s_differences_stand_beside_ours(every):
    lines = lines_of(every)
    article = {name: line[3] for name, line in lines.items()}
    assert article["HA + GH against HA"] == "+0.3"
    assert article["LSA (1) against LSA (1x)"] == "−2.4"
    (net7,) = (v for k, v in article.items() if k.startswith("terms qk + q_rk") and "×" in k)
    assert net7 == "+0.5", "82.4 - 81.8 less 81.4 - 81.3"
    assert article["application neighboring against window"] == "–", "it prints no Net4-N"
    assert lines["HA + GH against HA"][2] == "5"


def test_intervals_are_those_of_all_differences_together(full, every):
    one = study.load_study("table4", tier="proxy")
    (row,) = (r for r in build(one, collect(full, "proxy")).rows if r.variant == "elsa")
    tested = sum("[" in line[1] for line in lines_of(every).values())
    assert tested == 19
    half = row.contrast.noise.edge(ALPHA / tested)
    mean = row.contrast.difference.mean
    assert half > row.contrast.difference.half
    name = "HA + GH against Base model"
    assert lines_of(every)[name][1] == f"+{mean:.2f} [+{mean - half:.2f}, +{mean + half:.2f}]"


def test_verdicts_follow_from_the_intervals(every):
    for name, here, _, article, verdict in lines_of(every).values():
        if "[" not in here:
            assert verdict.startswith("no verdict: ")
            assert name.startswith(EVERY)
            continue
        mean, low, high = (float(n.replace("−", "-")) for n in re.findall(r"[+−]?\d+\.\d+", here))
        word = "not clear: "
        if low > 0 or high < 0:
            word = f"clear: {('more' if mean > 0 else 'less') if '×' in name else ''}"
            word += "" if "×" in name else "higher" if mean > 0 else "lower"
            assert verdict.endswith("as in the article") or article == "–"
        assert verdict.startswith(word)
        assert f"Clear: {name}, {here} points" in short(every) or word == "not clear: "
    assert lines_of(every)["LSA (2x) against LSA (1x)"][4].startswith("not clear: about ")


def test_what_is_the_other_way_round_says_so(tmp_path):
    write(tmp_path, range(5), lambda run: run.variant not in ("swin", "elsa", "elsa_noghost"))
    for folder in (tmp_path / "proxy/runs").glob("elsa-s*"):
        run = RunDir(folder)
        shutil.rmtree(folder)
        (spec,) = (r for r in study.load_study("table4", tier="proxy").runs()
                   if r.identity == run.identity)  # fmt: skip
        write_run(tmp_path, spec, changes={"acc1": 70.0 + spec.seed / 10})
    verdict = lines_of(answered(tmp_path))["HA + GH against Base model"][4]
    assert verdict == "clear: lower, the other way than in the article"


def test_one_seed_has_no_interval(tmp_path):
    found = answered(write(tmp_path, [0]))
    lines = lines_of(found)
    verdict = "not clear: one seed has no interval; at least 1 more seed"
    assert lines["HA against Base model"][4] == verdict
    assert "1 seed of each row." in short(found)
    assert " 0 clear, 19 not clear, 2 without a number." in short(found)
    assert "tested together" not in short(found)
    assert not any("[" in line[1] for line in lines.values())


def test_rows_that_lack_runs_are_named(tmp_path):
    found = answered(write(tmp_path, range(3), lambda run: run.variant in ("net4_n", "elsa")))
    lines = lines_of(found)
    assert lines["HA + GH against HA"][4] == "not run: HA + GH"
    assert lines["terms bias (Net4) against qk + bias (Swin-T) (over 1 of 2)"][3] == "−1.5", (
        "Net4 less Swin-T"
    )
    assert "not clear: about" in lines["HA against Base model"][4]
    assert lines["HA against Base model"][1].endswith("[−∞, +∞]"), "two rows at other seeds"
    (bias,) = (
        line for name, line in lines.items() if name.startswith("terms bias") and "×" in name
    )
    assert bias[1:] == ("–", "–", "–", "not run: terms bias, application neighboring")
    assert "3 seeds of each row." in short(found)


def test_an_effect_is_not_judged_on_the_seeds_that_a_row_has_left(tmp_path):
    """Those that diverged are gone by what they were."""
    write(tmp_path, range(5), lambda run: (run.variant, run.seed) == ("net4_n", 2))
    (lost,) = (r for r in study.load_study("table3", tier="proxy").runs()
               if (r.variant, r.seed) == ("net4_n", 2))  # fmt: skip
    write_run(tmp_path, lost, changes={"outcome": "diverged", "acc1": None})
    lines = lines_of(answered(tmp_path))
    why = "no verdict: terms bias, application neighboring 1 of 5 diverged"
    of_it = [line for name, line in lines.items() if "terms bias" in name]
    of_it.append(lines["application neighboring against window"])
    assert len(of_it) == 3
    assert {line[4] for line in of_it} == {why}
    grid = study.load_study("terms_by_area", tier="proxy", recall=tmp_path)
    notes = " ".join(note.text for note in build(grid, collect(tmp_path, "proxy")).notes)
    assert notes.count(why) == 3
    assert f"({why})" in notes, "and no p"


def test_seeds_that_no_two_rows_share_are_named_for_effects_too(tmp_path):
    write(tmp_path, range(5), lambda run: (run.variant == "swin") == (run.seed < 3))
    lines = lines_of(answered(tmp_path))
    assert lines["HA against Base model"][4] == "no seed in common"
    assert lines["application neighboring against window"][4] == "no seed in common"


def test_rows_of_another_code_are_marked_in_short_too(tmp_path):
    write(tmp_path, range(5), lambda run: run.variant == "dwconv_heads_1")
    for run in study.load_study("fig2", tier="proxy").runs():
        if run.variant == "dwconv_heads_1":
            write_run(tmp_path, run, changes={"code": "b" * 12, "acc1": 50.0 + run.seed / 9})
    line = next(line for (line,) in answered(tmp_path).parts[0].lines if "DwConv (1)" in line)
    assert "lower" in line
    assert "(not made alike: code " in line


def test_answers_that_all_rows_share_are_no_single_seed(tmp_path):
    for run in study.load_study("table4", tier="proxy").runs():
        write_run(tmp_path, run, changes={"acc1": 80.0 + run.seed, "correct": None})
    verdict = lines_of(answered(tmp_path))["HA against Base model"][4]
    assert "one seed" not in verdict


def test_an_end_beside_0_shows_on_which_side_it_lies():
    values = Estimate((1.0, 0.993, 1.004), 0.999)
    noise = Noise(0.4965, 1e9, 0.0, 3, "paired")
    line = parts.Difference("a", Contrast((0, 1, 2), values, (), noise), None)
    low, high = line.interval(1)
    assert 0.02 < low < 0.04
    near = replace(line, contrast=replace(line.contrast, noise=replace(noise, seed=0.5085)))
    assert near.cells(1, 2)[1] == "+0.999 [+0.002, +1.996]"
    assert near.verdict(1) == "clear: higher"
    assert line.cells(1, 2)[1] == f"+1.00 [+{low:.2f}, +{high:.2f}]"


def test_rows_that_saw_other_images_are_not_compared(tmp_path):
    write(tmp_path, range(2), lambda run: run.variant == "elsa")
    for run in study.load_study("table4", tier="proxy", only="elsa").runs()[:2]:
        write_run(tmp_path, run, changes={"data_fingerprint": "other"})
    verdict = lines_of(answered(tmp_path))["HA + GH against HA"][4]
    assert verdict.startswith("not comparable: data ")


def test_order_settings_and_cautions(every):
    titles = [part.title for part in every.parts]
    order, differs, cautions = every.parts[-3:]
    assert titles[-3:] == [order.title, differs.title, cautions.title]
    assert any("Table 1: Kendall's tau" in line for (line,) in order.lines)
    assert ("data.name", "imagenet", "cifar10") in differs.lines
    assert ("seeds", "not said", "0, 1, 2, 3, 4") in differs.lines
    assert "tier" not in [line[0] for line in differs.lines]
    assert "50,000 training images" in differs.said
    assert any("0.6 points (median)" in line for (line,) in cautions.lines)
    assert "without end" not in cautions.lines[0][0]


def test_intervals_without_ends_count_in_the_median_of_all(tmp_path):
    found = answered(write(tmp_path, [0, 7], lambda run: run.variant in ("net4_n", "elsa")))
    cautions = found.parts[-1]
    halves = [line[1] for line in lines_of(found).values() if "[" in line[1]]
    unbound = sum("∞" in one for one in halves) * 2 > len(halves)
    assert ("the intervals reach without end" in cautions.lines[0][0]) == unbound


def test_it_is_of_all_the_article_s_studies_and_never_of_the_toy_tier(full):
    runs = collect(full, "proxy")
    some = [build(one, runs) for one in loaded(full)[:5]]
    assert answer(some, runs) is None
    toy = [build(one, runs) for one in loaded(tier="toy")]
    assert answer(toy, runs) is None
    assert "What limits it" not in page([(one.study, runs) for one in some], [])


def test_at_the_paper_tier_tables_1_and_3_stand_for_the_grid(tmp_path):
    runs = collect(tmp_path, "paper")
    found = answer([build(one, runs) for one in loaded(tier="paper")], runs)
    assert lines_of(found)["Net7 (neighboring, unfold) against Net7 (local window)"][3] == "+0.6"
    (differs,) = (part for part in found.parts if part.title == "What differs from the article")
    assert [line[0] for line in differs.lines] == ["seeds"]


def test_the_report_and_a_readme_with_marks_show_the_same(full):
    readme = full / "proxy" / "README.md"
    readme.write_text("\n".join(["# Head", *MARKS, "Tail"]))
    (path,) = write_report(loaded(full), full)
    text = readme.read_text()
    assert text.startswith(f"# Head\n{MARKS[0]}\n\n## {parts.TITLE}\n")
    assert text.endswith(f"\n{MARKS[1]}\nTail")
    write_report(loaded(full), full)
    assert readme.read_text() == text, "written twice it is the same"
    found = answered(full)
    shown = path.read_text()
    for line in lines_of(found).values():
        assert all(f">{cell}</td>" in shown for cell in line)
    assert found.markdown() in text


def test_a_readme_without_marks_and_a_folder_without_readme_stay(tmp_path):
    pairs = [(one, collect(tmp_path, "proxy")) for one in loaded()[:1]]
    renew(tmp_path / "README.md", pairs)
    assert not (tmp_path / "README.md").exists()
    for text in ("mine", f"{MARKS[1]} {MARKS[0]}", " ".join(MARKS)):
        (tmp_path / "README.md").write_text(text)
        renew(tmp_path / "README.md", pairs)
        assert (tmp_path / "README.md").read_text() == text


def test_the_committed_readme_is_what_the_committed_runs_say():
    results = ROOT / "results"
    runs = collect(results, "proxy", folders=False)
    found = answer([build(one, runs) for one in loaded(results)], runs)
    assert found.markdown() in (results / "proxy" / "README.md").read_text("utf-8")
