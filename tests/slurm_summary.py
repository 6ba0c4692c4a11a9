"""What the tests' output ends with: a table of the faults that were caused in a real SLURM cluster.

A test notes each fault among its properties, which pytest carries from its workers to its output.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Faults:
    """The faults that one test causes; every run counts as lost until it is proved whole."""

    properties: list = field(default_factory=list)

    def cause(self, fault, runs=1):
        """Note a fault that hits so many runs; gives the entry for ``prove``."""
        entry = {"fault": fault, "runs": runs, "lost": runs, "twice": 0}
        self.properties.append(("fault", entry))
        return entry


def prove(entry, *, lost=0, twice=0):
    """Note what became of the runs that a fault hit."""
    entry.update(lost=lost, twice=twice)


def table(entries):
    """One line per kind of fault, and their sum."""
    kinds: dict[str, Counter] = {}
    for entry in entries:
        numbers = {key: entry[key] for key in ("runs", "lost", "twice")}
        kinds.setdefault(entry["fault"], Counter()).update({"caused": 1, **numbers})
    kinds["all"] = sum(kinds.values(), Counter())
    width = max(map(len, kinds))
    return [
        f"{'fault':<{width}}  caused  runs  lost  trained twice",
        *(
            f"{fault:<{width}}{n['caused']:>8}{n['runs']:>6}{n['lost']:>6}{n['twice']:>15}"
            for fault, n in kinds.items()
        ),
        "lost: ended otherwise than with bitwise the weights of the undisturbed run, or not queued",
    ]


def pytest_terminal_summary(terminalreporter):
    """Print the table, and why tests of SLURM were skipped."""
    reports = [one for many in terminalreporter.stats.values() for one in many]
    entries = [
        entry
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, entry in report.user_properties
        if name == "fault"
    ]
    if entries:
        terminalreporter.section("faults caused in a SLURM cluster")
        terminalreporter.write_line("\n".join(table(entries)))
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
        if "slurm" in report.keywords
    )
    for reason, number in skipped.items():
        terminalreporter.write_line(f"{number} tests of SLURM skipped: {reason}")
