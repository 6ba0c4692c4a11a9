"""Pictures of a written report page: on a desktop, on a phone, by night.

Run: python benchmarks/report_screenshots.py [results/toy]     Writes report-*.png beside the page.
Needs a Chromium, such as `apt-get install chromium`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "desktop": ({"width": 1280, "height": 1500}, "html"),
    "phone": ({"width": 390, "height": 1500, "phone": True}, "html"),
    "dark": ({"width": 1280, "height": 1500, "scheme": "dark"}, "#table1"),
}
"""Name -> the window, and what stands at its top."""


def main() -> None:
    """Open the page and take its pictures."""
    # The browser is driven as the tests drive it.
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser, chromium

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "toy"
    page = folder / "report.html"
    if not page.exists():
        sys.exit(f"{page}: is not there; write it with lsa report")
    if chromium() is None:
        sys.exit("no Chromium on PATH; install one")
    with Browser() as browser:
        for name, (window, top) in VIEWS.items():
            browser.open(page, **window)
            browser.run(f"document.querySelector('{top}')?.scrollIntoView()")
            browser.picture(folder / f"report-{name}.png")
            print(folder / f"report-{name}.png")


if __name__ == "__main__":
    main()
