"""The page: one file, nothing fetched, everything escaped, usable without eyes or a mouse."""

import re
import shutil
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from synthetic import write_run, write_study

from lsa_study.analysis import claims
from lsa_study.analysis.collect import collect
from lsa_study.analysis.html import page, write_report
from lsa_study.analysis.plots import style
from lsa_study.config import study

VOID = {"meta", "br", "link", "img", "input", "hr"}
NASTY = r"""<script>alert("x")</script> & 'q' $x_1$ {{ 1 }} ]]> <!-- % \ é Δ"""
ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order, every id is used once."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_study(folder, "table2", tier="proxy", seeds=range(4))
    write_study(folder, "table4", tier="proxy", seeds=range(4))
    return folder


@pytest.fixture(scope="module")
def written(results):
    loaded = [study.load_study(name, tier="proxy") for name in ("table2", "table4")]
    (path,) = write_report(loaded, results)
    assert path == results / "proxy" / "report.html"
    return path.read_text("utf-8")


def test_it_is_well_formed_with_unique_ids(written):
    read = Page(written)
    assert len(read.ids) == len(set(read.ids))
    for _, attrs in read.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name, read.ids[0]) in read.ids
        for name in ("href", "xlink:href"):
            assert attrs.get(name, f"#{read.ids[0]}").removeprefix("#") in read.ids
    for target in re.findall(r"url\(#([^)]*)\)", written):
        assert target in read.ids


def test_it_fetches_nothing(written):
    read = Page(written)
    assert not [attrs for _, attrs in read.tags if "src" in attrs or "srcset" in attrs]
    assert not read.all("link")
    rest = written.replace("http://www.w3.org/1999/xlink", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttp", rest)
    assert "default-src 'none'" in written


def test_claims_come_first_and_the_tier_is_told(results, written):
    body = written[written.index("<body>") :]
    assert body.index('id="claims"') < body.index('id="table2"') < body.index('id="table4"')
    assert body.index("never a reproduction") < body.index('id="claims"')
    for claim in claims.Claims.read():
        assert f'id="claim-{claim.id}"' in body
    shown = re.findall(r'<span class="verdict ([^"]*)">([^<]*)</span>', body)
    judged = claims.judge_tier(results, "proxy")
    assert sorted(shown) == sorted((one.word, one.verdict) for one in judged)
    order = [list(claims.GROUPS).index(at) for at in re.findall(r'data-group="([^"]*)">', body)]
    assert order == sorted(order), "decided first, not run last"
    assert (
        body.index('id="claims"') < body.index("span where each holds") < body.index("data-group")
    )
    assert {word for word, _ in shown} > {"supported", "not run"}


def sentences(text):
    found = re.findall(r'<p class="summary"><b>([^<]*)</b>([^<]*)</p>', text)
    assert text.index("<h1>") < text.index('class="summary"') < text.index("<nav")
    return dict(found)


def test_three_sentences_say_what_was_run_what_is_decided_and_what_is_not(results, written):
    judged = claims.judge_tier(results, "proxy")
    counts = {group: [one for one in judged if one.grouped == group] for group in claims.GROUPS}
    ran, decided, rest = sentences(written).values()
    runs = collect(results, "proxy").runs
    assert f" {len(runs)} runs at tier proxy, for 6 of the 6 rows of Table 2, Table 4; " in ran
    assert "seeds: 0, 1, 2, 3; on Processor 9000; 4 ended without an accuracy." in ran
    assert f" {len(counts['decided'])} of {len(judged)} claims; supported: " in decided
    assert counts["decided"][0].claim.text.rstrip(".") in decided
    left = len(counts["near"]) + len(counts["open"])
    assert (f"{left} open (" in rest) == bool(left)
    assert f"{len(counts['not run'])} not run (" in rest
    assert "rows not run" in rest
    assert "has a meaning at tier paper only" in rest


def test_the_nearest_claim_is_named_with_what_it_takes(results):
    loaded = study.load_study("table4", tier="proxy")
    judged = claims.judge_tier(results, "proxy")
    claim = judged[0].claim.model_copy(update={"text": NASTY})
    needs = "about 3 more seeds, 2 to 9"
    near = replace(judged[0], claim=claim, word="unresolved", wanted=3, needs=needs)
    rest = sentences(page([(loaded, collect(results, "proxy"))], [near]))["What is not:"]
    said = f" 1 open (more seeds, as many as it says); nearest: {NASTY} ({needs})."
    assert unescape(rest) == said
    assert "<script>alert" not in rest


def test_the_toy_tier_decides_nothing(tmp_path):
    loaded = write_study(tmp_path, "table4")
    (path,) = write_report([loaded], tmp_path)
    ran, decided, rest = sentences(path.read_text("utf-8")).values()
    assert "9 runs at tier toy, for 3 of the 3 rows of Table 4" in ran
    assert decided.startswith(" nothing, as results of tier toy ")
    assert decided.endswith("are never evidence.")
    assert rest.startswith(f" all {len(claims.Claims.read())} claims; ")


def test_cells_lead_to_their_runs(results, written):
    runs = collect(results, "proxy").runs
    for identity, run in runs.iterrows():
        assert f"seed {run['seed']}: " in written
        assert f"run {identity}, commit 0123456789" in written
    assert "the loss is nan" in written
    assert "over seeds and test images (" in written
    tips = [attrs for attrs in Page(written).all("span") if attrs.get("class") == "behind"]
    assert tips
    assert all(attrs["tabindex"] == "0" for attrs in tips)


def test_it_can_be_used_without_eyes_or_mouse(written):
    read = Page(written)
    assert read.all("html") == [{"lang": "en"}]
    assert all(len(read.all(tag)) == 1 for tag in ("main", "header", "footer", "nav", "h1"))
    heads = read.all("th")
    assert all(attrs["scope"] in ("col", "row") for attrs in heads)
    assert len(read.all("button")) == sum(attrs["scope"] == "col" for attrs in heads)
    pictures = read.all("svg")
    assert pictures
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in pictures)
    assert len(read.all("table")) == len(read.all("caption")) == 3
    assert read.all("meta")[1]["content"] == "width=device-width, initial-scale=1"


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [c for c in style.DARK if c not in (style.PAPER, style.GRID)])
def test_every_colour_of_text_can_be_read_by_day_and_night(colour):
    assert contrast(colour, style.PAPER) >= 4.5
    assert contrast(style.DARK[colour], style.DARK[style.PAPER]) >= 4.5


def test_the_page_s_own_colours_can_be_read(written):
    rules = re.findall(r"--([a-z]+): (#[0-9a-f]{6})", written)
    by_name = {}
    for name, colour in rules:
        by_name.setdefault(name, []).append(colour)
    papers, bands = by_name["paper"], by_name["band"]
    assert len(papers) == 2
    for name in ("ink", "quiet", "link", "good", "bad", "open"):
        for colour, paper, band in zip(by_name[name], papers, bands, strict=True):
            assert min(contrast(colour, paper), contrast(colour, band)) >= 4.5, name


def test_figures_follow_the_page_s_colours(written):
    figure = written[written.index("<figure>") : written.index("</figure>")]
    assert not re.search(r"#[0-9a-fA-F]{6}", figure)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", figure))
    assert used
    assert all(written.count(f"--{name}: ") == 2 for name in used)


def test_whatever_users_write_stays_text(tmp_path):
    document = yaml.safe_load((ROOT / "experiments" / "table4.yaml").read_text("utf-8"))
    document["title"] = document["question"] = NASTY
    for variant in document["variants"].values():
        variant["label"] = NASTY
        variant["columns"] = {NASTY: NASTY}
        variant["note"] = NASTY
    folder = tmp_path / "experiments"
    shutil.copytree(ROOT / "experiments" / "base", folder / "base")
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "results" / "paper")
    path = folder / "table4.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    loaded = study.load_study(path, seeds=[0])
    for run in loaded.runs():
        write_run(tmp_path, run, changes={"device": NASTY, "commit": NASTY})
    text = page([(loaded, collect(tmp_path, "toy"))], [])
    read = Page(text)
    assert len(read.all("script")) == 1
    assert "<script>alert" not in text
    assert any(NASTY in words for words in read.words)
    figure = text[text.index("<figure>") :]
    assert "$x_1$" in figure, "a dollar sign in a label is no formula"
    assert "…" in figure, "long labels are cut in figures"


def test_a_page_without_runs_says_so(tmp_path):
    loaded = study.load_study("table5")
    text = page([(loaded, collect(tmp_path, "toy"))], [])
    Page(text)
    assert text.count("not run") >= 4


def test_broken_files_are_listed(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0])
    run = loaded.runs()[0]
    (tmp_path / "toy" / "runs" / run.name / "result.json").write_text("{")
    text = page([(loaded, collect(tmp_path, "toy"))], [])
    assert f"{run.name}/result.json: is unreadable" in text
