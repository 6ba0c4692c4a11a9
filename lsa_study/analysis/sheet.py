"""The fidelity sheet: where a study's settings come from, and what is known to differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsa_study.analysis.article import columns_and_note
from lsa_study.config.contrast import under
from lsa_study.config.fidelity import KINDS, remarks, shown, sources
from lsa_study.config.settings import flatten
from lsa_study.config.study import Study
from lsa_study.terminal import wrapped

HIDDEN = ("tier", "seed", "data.root", "runtime", "train.start.recipe")
"""Settings that a sheet leaves out; what it says of seeds is a remark."""
MEANT = ("model.op.scale",)
"""Settings of which null is a value; others are off with it."""


@dataclass(frozen=True)
class _Entry:
    """One setting of some rows that share its value and source."""

    rows: str
    """Those rows as text."""
    setting: str
    value: str
    kind: str
    place: str
    why: str

    @property
    def text(self) -> str:
        """Setting and value, with the remark in brackets."""
        return f"{self.setting} {self.value}" + f" ({self.why})" * bool(self.why)


@dataclass(frozen=True)
class Sheet:
    """The fidelity sheet of a study at the paper tier."""

    study: Study
    entries: tuple[_Entry, ...]
    """Those of every row first."""
    differs: tuple[tuple[str, str], ...]
    """Rows and what is known to differ from the article there."""
    noted: tuple[tuple[str, str], ...]
    """Rows and their own notes."""
    assumed: tuple[tuple[str, str], ...]
    """Rows and what the article leaves open there."""

    @property
    def title(self) -> str:
        """What it is the sheet of."""
        return f"Fidelity sheet of {self.study.place}"

    def remarks(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """What differs and what is assumed by their headings; an empty one is left out."""
        found = {"Known to differ": self.differs + self.noted, "Assumed": self.assumed}
        return {title: lines for title, lines in found.items() if lines}

    @property
    def note(self) -> str:
        """What is known to differ, for the notes under a table, where rows' own stand anyway."""
        lines = " ".join(f"{rows}: {remark}" for rows, remark in self.differs)
        sheet = f"Every setting's source: lsa plan {self.study.name} --tier paper."
        return f"Known to differ from the article or its released code. {lines} {sheet}"

    def text(self) -> str:
        """As ``lsa plan`` prints it."""
        lines = [f"{self.title}: every setting, and where it comes from"]
        groups: dict[str, dict[str, list[str]]] = {}
        for one in self.entries:
            place = f"{one.kind}, {one.place}"
            groups.setdefault(one.rows, {}).setdefault(place, []).append(one.text)
        for rows, places in groups.items():
            lines += wrapped(rows, "  ")
            for place, settings in places.items():
                lines += wrapped(f"{place}: {', '.join(settings)}", "    ")
        for title, listed in self.remarks().items():
            lines.append(f"  {title.lower()}")
            for rows, remark in listed:
                lines += wrapped(f"{rows}: {remark}", "    ")
        return "\n".join(lines)

    def markdown(self) -> str:
        """As it is kept beside the article's tables."""
        stem = self.study.name
        parts = [
            f"# {self.title}",
            f"{self.study.file.title}. Where each setting of the paper tier comes from: "
            + ", ".join(
                f"*{kind}* ({meaning})" for kind, meaning in KINDS.items() if kind != "ours"
            )
            + f", or *ours*. Written by `lsa plan {stem} --tier paper --sheet`.",
            "| rows | setting | value | source | place | remark |\n"
            "| --- | --- | --- | --- | --- | --- |\n"
            + "\n".join(
                f"| {e.rows} | `{e.setting}` | `{e.value}` | {e.kind} | {e.place} | {e.why} |"
                for e in self.entries
            ),
        ]
        for title, listed in self.remarks().items():
            lines = "\n".join(f"- {rows}: {remark}" for rows, remark in listed)
            parts.append(f"## {title}\n\n{lines}")
        return "\n\n".join(parts) + "\n"


def sheet_of(study: Study) -> Sheet:
    """Make the sheet of a study, of the settings that can move a number.

    Raises:
        ConfigError: the file of sources, or a note of a row, is not as it should be.
    """
    rows: dict[tuple[str, str, str, str, str], list[str]] = {}
    for variant, settings in study.variants.items():
        science, sourced = flatten(settings.science()), sources(study, variant)
        for setting, value in flatten(settings.model_dump(mode="json")).items():
            off = value is None and setting not in (*science, *MEANT)
            if not off and not under(setting, HIDDEN):
                one = sourced[setting]
                key = (setting, shown(value), one.kind, one.place, one.why)
                rows.setdefault(key, []).append(variant)
    every: list[str] = [*study.variants]
    kinds: list[str] = [*KINDS]
    order = sorted(
        rows.items(),
        key=lambda item: (
            -len(item[1]) if len(item[1]) == len(every) else 0,
            every.index(item[1][0]),
            -len(item[1]),
            item[1],
            kinds.index(item[0][2]),
        ),
    )
    notes: dict[str, list[str]] = {}
    for variant in every:
        if note := columns_and_note(study, variant)[1]:
            notes.setdefault(note, []).append(variant)
    found = remarks(study)
    differs, noted, assumed = (
        tuple((_rows(of, every), text) for text, of in texts.items())
        for texts in (found["differs"], notes, found["assumed"])
    )
    entries = tuple(_Entry(_rows(of, every), *key) for key, of in order)
    return Sheet(study, entries, differs, noted, assumed)


def _rows(some: Sequence[str], every: Sequence[str]) -> str:
    """Rows as text, by those that they are not where these are few."""
    others = [row for row in every if row not in some]
    if not others:
        return "every row"
    named, but = (others, "every row but ") if len(others) < len(some) / 2 else (some, "")
    return but + ", ".join(named)
