"""``python -m heliostat.report.live FOLDER DESCRIPTOR PARENT``, which ``process`` starts."""

from __future__ import annotations

import sys
from pathlib import Path

from heliostat.report.live.process import serve_for_parent

if __name__ == "__main__":
    serve_for_parent(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
