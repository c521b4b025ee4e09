"""A run folder becomes one self-contained HTML page: no server, no requests, nothing to install.

    run folders -> read -> (outcome, panels, phases, transcripts, tables) -> page -> report.html

Everything is drawn here, as HTML and inline SVG, so the page reads without JavaScript; the script only adds hover
values, the theme switch and showing or hiding single runs. Left out: live updates, and any number that cannot be
computed from the files of a run folder.
"""

from heliostat.report.page import write_report as write_report
