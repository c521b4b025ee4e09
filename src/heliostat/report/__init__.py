"""A run folder becomes one self-contained HTML page: no server, no requests, nothing to install.

    run folders -> runs -> charts and sections -> page -> report.html

    runs/        run folders as records, and what they achieved
    listing      a row for each run of a folder
    charts/      line charts and bars as inline SVG
    sections/    the parts of the page, in words, tables and charts
    html/        escaping, templates, style and script, and the frame of every page
    diagnosis/   what went wrong with a run, as text
    live/        the page of a run that goes on, served on this machine

Everything is drawn here, as HTML and inline SVG, so the page reads without JavaScript; the script only adds hover
values, the theme switch and showing or hiding single runs. ``live`` serves the same page while a run goes on. Left out:
any number that cannot be computed from the files of a run folder.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.report.page import write_report as write_report


def __getattr__(name: str) -> Any:
    """Import the page with its charts on first use: lists of runs need neither."""
    if name != "write_report":
        raise AttributeError(f"module 'heliostat.report' has no attribute '{name}'")
    from heliostat.report.page import write_report

    return write_report
