"""A run folder as a page and as a state, each computed when it is asked for and the folder's files have changed.

Left out: HTTP (``server``).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heliostat.report.html.frame import framed
from heliostat.report.html.markup import Html, fill
from heliostat.report.live.strip import facts_of, last_event, strip_of, waiting_strip
from heliostat.report.page import Content, content_of
from heliostat.report.runs.glance import Glance, glance
from heliostat.report.runs.read import AUDIT, CONSEQUENCES, Run, finite, read_run

MIN_SECONDS = 2.0
"""Seconds between two pages, at least."""
MAX_SHARE = 0.1
"""Share of a processor for pages: one that takes a second to write is written every ten seconds."""
WATCHED = (*CONSEQUENCES, "events.jsonl", AUDIT)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The content of a page, the version of the files that it shows, and the earliest time of the next."""

    version: str
    content: Content
    next_at: float


class LiveView:
    """The page and the state of one run folder; methods may be called from several threads.

    Args:
        folder: a run folder, which need not exist yet.
        min_seconds: seconds between two pages, at least.
        max_share: share of a processor that pages may take.
    """

    def __init__(self, folder: Path, min_seconds: float = MIN_SECONDS, max_share: float = MAX_SHARE) -> None:
        self.folder = folder
        self.min_seconds = min_seconds
        self.max_share = max_share
        self.num_drawn = 0
        self._lock = threading.Lock()
        self._drawn: _Drawn | None = None

    def page(self) -> tuple[str, str]:
        """Return the whole page, and its version."""
        run = self._glance()
        with self._lock:
            drawn = self._content(run)
        content = drawn.content
        strip = self._strip(run, drawn.version)
        return framed(content.title, content.main, content.anchors, content.hover, strip), drawn.version

    def status(self) -> str:
        """Return the state as JSON, with the strip as HTML, and the version of the page that a request would get."""
        run = self._glance()
        version = self._due(run)
        state: dict[str, object] = {"folder": str(self.folder), "status": "missing" if run is None else run.status}
        if run is not None:
            last = run.rows[-1] if run.rows else {}
            state |= {
                "reason": run.reason,
                "step": run.step,
                "num_steps": run.num_steps,
                "seconds_left": run.seconds_left,
                "lambda_hat": finite(last.get("policy/lambda_hat")),
                "last_event": last_event(self.folder),
            }
        title = f"{self._title} · {facts_of(run).get('step', run.status)}" if run else self._title
        return json.dumps(state | {"title": title, "page": version, "strip": self._strip(run, version)})

    @property
    def _title(self) -> str:
        return self.folder.resolve().name

    def _glance(self) -> Glance | None:
        """Look at the folder; ``None`` where it is missing, or holds no run yet."""
        try:
            run = glance(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_empty = run.status == "broken" and not any((self.folder / name).is_file() for name in CONSEQUENCES)
        return None if is_empty else run

    def _strip(self, run: Glance | None, version: str) -> Html:
        if run is not None:
            return strip_of(run, version)
        is_gone = self._drawn is not None and self._drawn.version != ""
        text = "The run folder is gone" if is_gone else f"Waiting for the run folder {self.folder}"
        return waiting_strip(text, version)

    def _version(self, run: Glance) -> str:
        """Name the state of the files, by their sizes and times."""
        marks: list[object] = [run.status]
        for name in WATCHED:
            try:
                found = (self.folder / name).stat()
            except OSError:
                marks.append(None)
            else:
                marks.append((found.st_mtime_ns, found.st_size))
        return hashlib.sha256(repr(marks).encode()).hexdigest()[:16]

    def _due(self, run: Glance | None) -> str:
        """Return the version of the page that a request would get now."""
        drawn = self._drawn
        if run is None or (drawn is not None and drawn.version and time.monotonic() < drawn.next_at):
            return drawn.version if drawn else ""
        return self._version(run)

    def _content(self, run: Glance | None) -> _Drawn:
        """Return the content that is due, which is the last one while nothing has changed, or the folder is gone."""
        version = self._due(run)
        if self._drawn is not None and self._drawn.version == version:
            return self._drawn
        started = time.monotonic()
        content = self._waiting() if run is None else self._draw(run)
        ended = time.monotonic()
        pause = max(self.min_seconds, (ended - started) / self.max_share)
        self._drawn = _Drawn(version, content, ended + pause)
        return self._drawn

    def _draw(self, run: Glance) -> Content:
        try:
            read = read_run(self.folder)
        except ValueError:  # deleted a moment ago
            return self._waiting()
        self.num_drawn += 1
        return content_of([_in_progress(read) if run.status in ("starting", "running") else read])

    def _waiting(self) -> Content:
        text = "Nothing is to be seen yet. This page fills itself once the run writes its first file."
        anchors: Sequence[str] = ()
        return Content(self._title, fill("waiting.html", title=self._title, text=text), anchors, {})


def _in_progress(run: Run) -> Run:
    """Return a run without notes on files that it has yet to write, and without an earlier session's summary."""
    return replace(run, notes=(), summary={"status": "running"})
