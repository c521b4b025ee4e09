"""Draw the report page of every run in ``docs/examples`` while the site is built, from the run's committed data.

Left out: checkpoints and models, which are not committed; the page does not need them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from heliostat.report import write_report


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with everything in ``docs``: adds ``examples/<run>/report.html``."""
    with tempfile.TemporaryDirectory() as scratch:
        for run in sorted((Path(config.docs_dir) / "examples").iterdir()):
            page = write_report([run], Path(scratch) / "report.html").read_text(encoding="utf-8")
            files.append(File.generated(config, f"examples/{run.name}/report.html", content=page))
    return files
