"""Optional trackers in addition to ``metrics.jsonl``: TensorBoard, W&B, trackio, and a user's own.

    class MyTracker:                                              tracking.trackers = ["my_module:MyTracker"]
        def __init__(self, folder, recipe, **settings): ...       the run folder, and the recipe's settings
        def log(self, step, values): ...                          the rest is ``tracking.Tracker``

None of them can end a run, delay it, or change its results. The first failure of a tracker is reported once; after
several failures in a row the tracker is not called any more. ``metrics.jsonl`` has every metric. A missing package or
key is reported before the model loads.

Left out: the definitions of metrics (``tracking``).
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import inspect
import json
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError, TrackingSection
from heliostat.extras import require
from heliostat.named_imports import find
from heliostat.printed import visible_line
from heliostat.storage import publish_file
from heliostat.tracking import Tracker

MAX_FAILURES = 3
"""Failures in a row after which a tracker is not called again."""
CLOSE_S = 60.0
"""Seconds that a run waits for a tracker at its end."""
_NO_KEY = ("UsageError", "AuthenticationError")
_KEY_WORDS = ("api_key", "api key", "login", "not logged in")


class TensorBoardTracker:
    """A tracker that writes scalars for TensorBoard to the run folder's ``tensorboard/`` (extra: tensorboard).

    The path of the run's report is the text ``report``.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("report", report_of(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(visible_line(key), value, step)

    def rewind(self, last_step: int) -> None:
        """Keep all steps; TensorBoard draws repeated steps over the first ones."""

    def close(self) -> None:
        self._writer.close()


class HostedTracker:
    """A tracker for W&B or trackio, which share one interface (extras: wandb, trackio).

    Every call of ``log`` sends a row of its own. Steps of the warm start are negative, and steps after a rollback
    decrease; the services would refuse both as a row's position. So ``step`` is a value in each row, and the axis of
    the charts. The path of the run's report is ``report`` in the configuration. The page itself is not uploaded, since
    it shows prompts and completions.

    Args:
        memory: file in the run folder with the service's id of this run, for resumed runs.

    Raises:
        ConfigError: the service needs a key and has none.
    """

    def __init__(self, module: str, project: str, name: str, config: Mapping[str, Any], memory: Path) -> None:
        self._client = importlib.import_module(module)
        known = _known_runs(memory)
        wanted: dict[str, Any] = {"resume": "allow" if module == "wandb" or module in known else "never"}
        if module == "wandb":
            wanted["id"] = known.get(module) or uuid.uuid4().hex[:12]
        accepted = inspect.signature(self._client.init).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        continued = {key: value for key, value in wanted.items() if takes_all or key in accepted}
        try:
            self._client.init(project=project, name=name, config=dict(config), **continued)
        except Exception as error:
            if type(error).__name__ in _NO_KEY or any(word in str(error).lower() for word in _KEY_WORDS):
                raise ConfigError(
                    f"tracking.{module} has no key ({_line(error)}); run `{module} login`, or set "
                    f"{module.upper()}_API_KEY, or {module.upper()}_MODE=offline"
                ) from error
            raise
        publish_file(memory, json.dumps({**known, module: wanted.get("id", name)}) + "\n")
        if hasattr(self._client, "define_metric"):
            self._client.define_metric("step")
            self._client.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._client.log({**values, "step": step})

    def rewind(self, last_step: int) -> None:
        """Keep all rows that were sent; repeated steps are sent as additional rows."""

    def close(self) -> None:
        self._client.finish()


class Tolerant:
    """A tracker whose failures are reported once, and never end or delay the run.

    The tracker is opened in the caller's thread, where a missing key can be reported. All other calls run in order in a
    thread of its own. At its end the run waits up to ``CLOSE_S`` for unsent rows, and reports if that is too short.

    Args:
        name: of the tracker, for messages.
        open_it: opens the wrapped tracker.
        note: shows a line to the user.
    """

    def __init__(self, name: str, open_it: Callable[[], Tracker], note: Callable[[str], None]) -> None:
        self.name, self._note = name, note
        self._tracker: Tracker | None = None
        self._in_a_row, self._has_said = 0, False
        try:
            self._tracker = open_it()
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # a service's client may try to end the process
            self._failed(error)
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        opened_in = contextvars.copy_context()  # trackio keeps its run in a context variable
        self._thread = threading.Thread(target=opened_in.run, args=(self._work,), daemon=True, name=f"tracker-{name}")
        if self._tracker is not None:
            self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        row = dict(values)
        self._calls.put(lambda tracker: tracker.log(step, row))

    def rewind(self, last_step: int) -> None:
        self._calls.put(lambda tracker: tracker.rewind(last_step))

    def close(self) -> None:
        """Close the tracker, even after failures, since its earlier rows may still be sent."""
        self._calls.put(None)
        if self._tracker is None:
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._note(
                f"{self.name} has not taken all rows within {CLOSE_S:g} s; the run ends without it, and "
                "metrics.jsonl has every metric"
            )

    def _work(self) -> None:
        tracker = self._tracker
        assert tracker is not None
        while (call := self._calls.get()) is not None:
            if self._in_a_row < MAX_FAILURES:
                self._try(functools.partial(call, tracker))
        self._try(tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # nothing else handles errors of this thread
            self._failed(error)
        else:
            self._in_a_row = 0

    def _failed(self, error: BaseException) -> None:
        self._in_a_row += 1
        if not self._has_said:
            self._has_said = True
            self._note(f"{self.name} failed ({_line(error)}); the run continues, and metrics.jsonl has every metric")


OpenTracker = Callable[..., Tracker]
"""Opens a tracker, called with the run folder, the recipe's settings, and the tracker's own settings."""


def _tensorboard(folder: Path, recipe: Mapping[str, Any]) -> Tracker:
    return TensorBoardTracker(folder)


def _hosted(module: str, folder: Path, recipe: Mapping[str, Any], project: str) -> Tracker:
    return HostedTracker(module, project, folder.name, recipe, folder / "trackers.json")


_HOSTED = ("wandb", "trackio")

TRACKERS: dict[str, OpenTracker] = {
    "tensorboard": _tensorboard,
    **{name: functools.partial(_hosted, name) for name in _HOSTED},
}
"""Every shipped tracker by the name of its package."""


def wanted_trackers(section: TrackingSection) -> list[tuple[str, OpenTracker, dict[str, Any]]]:
    """Find the trackers that a recipe asks for, without opening them.

    Returns:
        The name of each, the function that opens it, and its settings.

    Raises:
        ConfigError: there is none of a name, it cannot be imported, it is no tracker, a setting is wrong, a name occurs
            twice or only with settings, or a shipped tracker's package is not installed.
    """
    shipped: dict[str, dict[str, Any]] = {"tensorboard": {}} if section.tensorboard else {}
    shipped |= {name: {"project": project} for name in _HOSTED if (project := getattr(section, name))}
    names = [*shipped, *section.trackers]
    settings = shipped | section.tracker_settings
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"[tracking] names the tracker '{twice}' twice; use it once")
    if unused := next((name for name in settings if name not in names), ""):
        raise ConfigError(f"tracking.tracker_settings has a table for '{unused}', which no tracker is named")
    found: list[tuple[str, OpenTracker, dict[str, Any]]] = []
    for name in names:
        opener: OpenTracker = find("tracker", name, TRACKERS, section.import_from)
        _check_tracker(name, opener, settings.get(name, {}))
        found.append((name, opener, settings.get(name, {})))
    return found


def _check_tracker(name: str, opener: OpenTracker, settings: Mapping[str, Any]) -> None:
    if name in TRACKERS:
        require(f"tracking.{name}", name, name)
    missing = [method for method in METHODS if not callable(getattr(opener, method, None))]
    if isinstance(opener, type) and missing:
        raise ConfigError(f"tracker '{name}' is no tracker: it lacks {', '.join(missing)} (heliostat.tracking.Tracker)")
    if not isinstance(settings, Mapping):
        raise ConfigError(f"tracking.tracker_settings: that of '{name}' is a table of settings, got {settings!r:.60}")
    try:
        inspect.signature(opener).bind(Path(), {}, **settings)
    except TypeError as error:
        raise ConfigError(
            f"tracker '{name}' is opened as {name.rpartition(':')[2]}(folder, recipe, **settings), with its table of "
            f"tracking.tracker_settings, and does not take that: {error}"
        ) from error


METHODS = ("log", "rewind", "close")
"""Methods that every tracker has."""


def open_services(
    section: TrackingSection, folder: Path, recipe: Mapping[str, Any], note: Callable[[str], None]
) -> list[Tracker]:
    """Build the trackers that the recipe asks for.

    Raises:
        ConfigError: see ``wanted_trackers``, or a tracker's key is missing.
    """
    settings = {**recipe, "report": report_of(folder)}
    return [
        Tolerant(name, functools.partial(opener, folder, settings, **own), note)
        for name, opener, own in wanted_trackers(section)
    ]


def report_of(folder: Path) -> str:
    """Return the absolute path of the page that a run writes at its end."""
    return str((folder / "report.html").resolve())


def _known_runs(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _line(error: BaseException) -> str:
    return visible_line(str(error)[:1000])[:200] or type(error).__name__
