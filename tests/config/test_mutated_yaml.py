"""Ten thousand broken YAML files: each is read or refused with a message, none is met by a crash.

Files of ``experiments`` are changed at random, as text and as values, and read by a command in this
process. A few hundred are tried every time; ``pytest -m exhaustive`` tries all.
"""

import shutil
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import answer

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    **{f"{name}.yaml": f"plan {name}" for name in ("table1", "table3", "table4", "table5", "fig2")},
    "base/toy.yaml": "plan table2 --seeds 0",
    "base/presets.yaml": "plan table4",
    "base/fidelity.yaml": "plan table3 --tier paper --sheet",
    "claims.yaml": "claims --tier toy --results results",
    "cluster.yaml": "retry --results results",
}
"""Each file with the command that reads it."""
TEXTS = {name: (ROOT / "experiments" / name).read_text() for name in COMMANDS}
ODD = (
    "null", "true", "no", "''", "[]", "{}", "-1", "0", "1e-3", ".inf", "-.inf", ".nan", "9" * 5000,
    "0x" + "f" * 5000, "1:30", "010", "2020-99-99", "2020-01-01", "!!bool abc", "!!float abc",
    "!!int abc", "!!timestamp abc", "!!binary abc", "!!set {a}", "!!omap [a: 1]", "!foo bar",
    "!!python/object:os.system {}", '"a\\0b"', '"\\e]0;x\\a"', '"\\uD800"', "*nothing", "&a [*a]",
    "&a {b: *a}", "[" * 900 + "]" * 900, "{a: " * 60 + "1" + "}" * 60, "<<", "{<<: {a: 1}}", "=",
    "{? [a] : b}", "{1: 2}", "{true: 1}", "../../x", "/etc/passwd", "a/b", "~", "\u202ex", "é",
    "x" * 9000, "[1, [2]]", "'{nothing}'", "'{'", "'{0.__class__}'", "99999999999999999999999",
    "1.0e+300", "[0, 1]", "[1.0, 0.1]", "{kind: unified}", "[qk]", "swin", "all", "'*'",
    "|\n  x\n", "- x", "? x",
)  # fmt: skip
SIGNS = ("", ":", "[", "}", "&", "*", "#", "'", "-", "\t", "\x9b", "\ud800", "\u2028", "%", "!")
LINES = (
    "x: 1", "study: a", "\t- x", "---", "...", "%YAML 9.9", "\x00", "\x07", "\x85", "\ufeff",
    "\u2028", "&b x", "tiers: []", "seeds: [true]", "seeds: []", "set: {model: 3}", "use: [x]",
    "benchmark: /", "costs: .", "resources: {hours: .inf}", "notes: {a: '{a}'}", "}", "]", "'",
    "factor: [model]", "<<: *a", "a: &z [z, z]\nb: &y [*z, *z]\nc: [*y, *y]",
)  # fmt: skip


def places(value, here=()):
    """The path of everything in nested lists and mappings."""
    yield here
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*here, key))


@st.composite
def changed_values(draw, text):
    """A file with some values replaced, keys renamed, entries dropped or moved."""
    data = yaml.safe_load(text)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([p for p in places(data) if p] or [("x",)]))
        group = data
        for key in above:
            group = group[key]
        if not group:
            continue
        what = draw(st.sampled_from(["odd", "drop", "rename", "any", "swap"]))
        if what == "odd":
            group[last] = f"@@{draw(st.integers(0, len(ODD) - 1))}@@"
        elif what == "any":
            leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
            group[last] = draw(st.recursive(leaves, lambda inner: st.lists(inner, max_size=3)))
        elif what == "swap":
            other = draw(st.sampled_from(sorted(places(group), key=repr)))
            found = group
            for key in other:
                found = found[key]
            group[last] = yaml.safe_load(yaml.safe_dump(found))
        else:
            found = group.pop(last)
            if what == "rename" and isinstance(group, dict):
                group[draw(st.text(max_size=9) | st.sampled_from(["kind", "size", "../x"]))] = found
    text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    for number, odd in enumerate(ODD):
        text = text.replace(f"'@@{number}@@'", odd).replace(f"@@{number}@@", odd)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_text(draw, text):
    """A file with lines dropped, doubled, moved, bent, or odd ones put in; or its bytes changed."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        line, key = lines[at], lines[at].partition(":")[0]
        cut = draw(st.integers(0, len(line)))
        bent = [f"{line[:cut]}{sign}{line[cut + 1 :]}" for sign in SIGNS]
        new = {
            "drop": st.just([]),
            "double": st.tuples(st.sampled_from(lines), st.just(line)),
            "indent": st.tuples(
                st.sampled_from([" " + line, "   " + line, f"\t{line}", f"- {line}"])
            ),
            "insert": st.tuples(st.sampled_from(LINES), st.just(line)),
            "value": st.tuples(st.sampled_from([f"{key}: {odd}" for odd in ODD])),
            "bend": st.tuples(st.sampled_from(bent)),
        }
        lines[at : at + 1] = draw(new[draw(st.sampled_from(sorted(new)))])
        lines = lines or [""]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    end = draw(st.sampled_from(["", "", "", "cut", "bom", "utf-16", "latin-1"]))
    if end == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif end == "bom":
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    elif end:
        content = content.decode("utf-8", "replace").encode(end, "replace")
    return content


@st.composite
def mutated(draw):
    """The name of a file and what it now holds."""
    name = draw(st.sampled_from(sorted(TEXTS)))
    return name, draw(draw(st.sampled_from([changed_values, changed_text]))(TEXTS[name]))


@pytest.fixture
def folder(tmp_path):
    """A checkout's data without its code; the results are those that nothing was run for."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "results").mkdir()
    shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
    return tmp_path


def check(folder, name, content, capfd):
    path = folder / "experiments" / name
    path.write_bytes(content)
    try:
        code, _, err = answer(folder, COMMANDS[name], capfd)
    finally:
        path.write_text(TEXTS[name])
    assert code in (0, 2, 4), (code, err)
    assert "Traceback" not in err
    lines = err.splitlines()
    assert (code == 0) == (not lines), err
    assert all(line.startswith("lsa: ") for line in lines), err
    assert {c for c in err if unicodedata.category(c) in ("Cc", "Cs")} <= {"\n", "\t"}, err
    assert sorted(p.name for p in folder.iterdir()) == ["experiments", "results"]
    assert sorted(p.name for p in (folder / "results").iterdir()) == ["paper"]


QUIET = {
    "deadline": None, "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                              HealthCheck.data_too_large],
}  # fmt: skip


@given(mutated())
@settings(max_examples=300, derandomize=True, **QUIET)
def test_a_broken_file_is_read_or_refused(folder, capfd, case):
    check(folder, *case, capfd)


@pytest.mark.exhaustive
@given(mutated())
@settings(max_examples=10_000, derandomize=True, **QUIET)
def test_ten_thousand_broken_files_are_read_or_refused(folder, capfd, case):
    check(folder, *case, capfd)
