"""The page in a real browser: quiet, offline, sortable, usable by keyboard, phone and eye."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser, chromium
from PIL import Image
from synthetic import write_run, write_study

from lsa_study.analysis.html import write_report
from lsa_study.config import study

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.xdist_group("browser"),  # one browser, one page
]
PHONE = {"width": 360, "height": 740, "phone": True}
WAYS = {"desktop": {}, "dark": {"scheme": "dark"}, "phone": PHONE}
LONG = "a_name_without_a_single_space_that_is_wider_than_any_phone_" * 3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in ("table2", "table4"):
        write_study(folder, name, tier="proxy", seeds=[0, 1])
    loaded = [study.load_study(name, tier="proxy") for name in ("table2", "table4")]
    write_run(folder, loaded[1].runs()[0], changes={"device": LONG})
    return write_report(loaded, folder)[0]


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def place(browser, selector):
    """The middle of an element, scrolled into the window."""
    return browser.run(
        f"(() => {{ const e = document.querySelector('{selector}');"
        "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )


def column(browser, table, number):
    """What a column shows, row by row, without the runs behind it."""
    return browser.run(
        f"[...document.querySelectorAll('#{table} tbody tr')].map(r => {{"
        f"const c = r.cells[{number}]; return (c.querySelector('.behind') ?? c)"
        ".firstChild.textContent.trim(); })"
    )


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_fetched_and_nothing_complains(browser, path, way):
    browser.open(path, **WAYS[way])
    assert browser.run("document.querySelectorAll('figure svg').length") >= 6
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.complaints == []


@pytest.mark.parametrize("width", [320, 360, 412, 768, 1280])
def test_no_width_scrolls_sideways(browser, path, width):
    browser.open(path, width=width, phone=width < 500)
    assert browser.run("document.documentElement.scrollWidth") == width
    # What is wider than the window lies in a box that scrolls by itself.
    wider = browser.run(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > "
        "innerWidth + 1 && !e.closest('.wide, .pictures')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wider == []


def test_a_click_sorts_and_a_second_one_turns_the_order(browser, path):
    browser.open(path)
    before = column(browser, "table2", 2)
    head = "#table2 thead th:nth-child(3)"
    orders = []
    for order in ("ascending", "descending"):
        browser.click(*place(browser, f"{head} button"))
        assert browser.run(f"document.querySelector('{head}').ariaSort") == order
        orders.append(column(browser, "table2", 2))
    assert all(sorted(one) == sorted(before) for one in orders)
    numbers = [[float(text.split()[0]) for text in one[:2]] for one in orders]
    assert numbers[0] == sorted(numbers[0]) == numbers[1][::-1]
    assert numbers[0][0] != numbers[0][1]
    assert [one[2] for one in orders] == ["diverged 2/2"] * 2, "words stay last"
    assert browser.run("document.querySelectorAll('#table2 [aria-sort]').length") == 1


def test_claims_can_be_narrowed_to_a_group(browser, path):
    seen = (
        "[...document.querySelectorAll('.claims tbody tr')].filter(r => r.offsetHeight)"
        ".map(r => r.dataset.group)"
    )
    for way in ({}, PHONE):
        browser.open(path, **way)
        every = browser.run(seen)
        assert len({*every}) > 1
        for group in {*every}:
            browser.run(f"document.querySelector('.filter input[value=\"{group}\"]').click()")
            assert browser.run(seen) == [one for one in every if one == group]


def test_the_keyboard_sorts_too(browser, path):
    browser.open(path)
    browser.run("document.querySelector('#table4 thead th button').focus()")
    browser.press("Enter", 13)
    names = column(browser, "table4", 0)
    assert names == sorted(names, key=str.lower)
    assert column(browser, "table4", 0) != column(browser, "table4", 1)


@pytest.mark.parametrize("way", WAYS)
def test_the_runs_of_a_cell_show_on_hover_and_focus(browser, path, way):
    browser.open(path, **WAYS[way])
    shown = "getComputedStyle(document.querySelector('#table4 .tip')).display"
    assert browser.run(shown) == "none"
    where = place(browser, "#table4 .behind")
    if way == "phone":
        browser.tap(*where)  # becomes a click, and so a focus, a moment later
        browser.run(
            "new Promise(done => { const look = () => document.activeElement === document.body "
            "? setTimeout(look, 20) : done(); look(); })"
        )
    else:
        browser.move(*where)
    assert browser.run(shown) == "block"
    text = browser.run("document.querySelector('#table4 .tip').innerText")
    assert "seed 0: " in text
    assert "commit 0123456789" in text
    box = browser.run(
        "(() => { const b = document.querySelector('#table4 .tip').getBoundingClientRect();"
        "return [b.left, b.top, innerWidth - b.right, innerHeight - b.bottom]; })()"
    )
    assert min(box) >= 0, "the whole of it lies in the window"
    browser.move(1, 1)
    browser.run("document.activeElement.blur()")
    assert browser.run(shown) == "none"
    browser.run("document.querySelector('#table4 .behind').focus()")
    assert browser.run(shown) == "block"


def test_the_tab_key_reaches_every_cell_with_runs(browser, path):
    browser.open(path)
    browser.run("document.querySelector('#table4 .wide').focus()")
    reached = []
    for _ in range(30):
        browser.press("Tab", 9)
        reached.append(browser.run("document.activeElement.getAttribute('aria-describedby')"))
    cells = browser.run(
        "[...document.querySelectorAll('#table4 .behind')].map(e => "
        "e.getAttribute('aria-describedby'))"
    )
    assert len(cells) == 5
    assert [one for one in reached if one in cells] == cells


def test_night_is_dark_and_day_is_light(browser, path):
    lights = {}
    for way in ("desktop", "dark"):
        browser.open(path, **WAYS[way])
        colours = browser.run(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('figure svg text')).fill]"
        )
        lights[way] = [sum(map(int, colour[4:-1].split(","))) for colour in colours]
    (day, ink), (night, chalk) = lights["desktop"], lights["dark"]
    assert day > 700 > 200 > ink
    assert night < 120 < 600 < chalk


def axe():
    """The accessibility checker's script, if its package is installed."""
    found = importlib.util.find_spec("axe_core_python")
    return Path(found.origin).with_name("axe.min.js") if found and found.origin else None


@pytest.mark.skipif(axe() is None, reason="axe-core-python is not installed")
@pytest.mark.parametrize("way", WAYS)
def test_axe_finds_nothing(browser, path, way):
    browser.open(path, **WAYS[way])
    browser.run(f"{axe().read_text('utf-8')};0")
    # Texts of figures have colours of their own, which test_html checks; axe is slow at them.
    found = browser.run(
        "axe.run({exclude: [['figure svg text']]}).then(r => [r.passes.length, r.violations.map("
        "v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 120)).join(' | '))])"
    )
    assert found[1] == []
    assert found[0] > 30


def test_pictures_are_taken_of_a_written_page(path):
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "report_screenshots.py"
    subprocess.run([sys.executable, script, path.parent], check=True, capture_output=True)
    sizes = {}
    for name in ("desktop", "phone", "dark"):
        with Image.open(path.parent / f"report-{name}.png") as picture:
            sizes[name] = picture.size
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert sizes == {"desktop": (1280, 1500), "phone": (780, 3000), "dark": (1280, 1500)}
