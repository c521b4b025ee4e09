"""Takes the documentation's pictures of a report: ``python -m tests.unit.report.pictures RUN [RUN ...]``.

Writes ``report-light.png``, ``report-dark.png`` and ``report-phone.png`` into ``docs/images`` from real runs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from heliostat.report import write_report
from tests.unit.report.browser import Browser, find_chromium

FOLDER = Path(__file__).parents[3] / "docs" / "images"
PICTURES = {"light": (1280, 1400, False), "dark": (1280, 1400, True), "phone": (390, 1400, True)}


def main() -> None:
    """Write the page to a temporary file and photograph its top in each size and theme."""
    binary = find_chromium()
    if binary is None:
        sys.exit("pictures need chromium or google-chrome on PATH")
    with tempfile.TemporaryDirectory() as scratch:
        page = write_report([Path(run) for run in sys.argv[1:]], Path(scratch) / "report.html")
        browser = Browser(binary, Path(scratch) / "profile")
        for name, (width, height, dark) in PICTURES.items():
            browser.open(page, width=width, height=height, dark=dark)
            print(browser.screenshot(FOLDER / f"report-{name}.png", full=False))
        browser.close()


if __name__ == "__main__":
    main()
