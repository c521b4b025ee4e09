"""Checks that every tracker must pass, shipped or your own: ``heliostat check my_module:MyTracker``.

Each check opens the tracker on a folder like a run's and calls it as a run does. A run itself goes on whatever a
tracker raises (``trackers.Tolerant``), and a check shows the error instead, as a sentence.

Left out: whether the rows arrive where the tracker sends them.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.config import TrackingSection, build_recipe
from heliostat.conformance import Nonconforming, process_state, run_checks, run_within
from heliostat.trackers import CLOSE_S, OpenTracker, wanted_trackers
from heliostat.tracking import Tracker

STEPS = (-2, -1, 0, 1, 2, 3, 2, 3, 4)
"""Steps as a run with a warm start and a rollback logs them."""

ROW = {"reward/mean": 0.5, "policy/entropy": float("nan"), "optim/grad_norm": float("inf"), "agent/entropy:4+": 1.0}
HANGS = f"close does not return within {CLOSE_S:g} s"
LIMIT_S = 120.0
"""Seconds for one check, after which the tracker counts as hanging."""
STANDS = f"opening it or a call of log or rewind does not return within {LIMIT_S:g} s"
OWN_FILES = ("metrics.jsonl", "recipe.toml", "versions.json")
"""Files of the run itself."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A folder like a run's, and a function that opens the tracker on it."""

    folder: Path
    open_it: Callable[[], Tracker]


Check = Callable[[Trial], None]


def opens_and_closes(trial: Trial) -> None:
    """Check that a run that ends before its first step does no harm, and that closing ends."""
    closing, errors = _in_thread(trial.open_it().close)
    closing.join(CLOSE_S)
    if closing.is_alive():
        raise Nonconforming(f"{HANGS}, after which a run ends without it; give what it waits for a time limit")
    if errors:
        raise errors[0]


def _in_thread(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """Start ``work`` in a thread of its own; return the thread and the list that its error will be in."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def takes_every_row_of_a_run(trial: Trial) -> None:
    """Check that negative, repeated and decreasing steps, empty rows and values like NaN are taken."""
    tracker = trial.open_it()
    for step in STEPS:
        tracker.log(step, ROW)
    tracker.log(5, {})
    tracker.close()


def is_called_from_another_thread(trial: Trial) -> None:
    """Check that rows can come from another thread than the one that opened the tracker, as in a run."""
    tracker = trial.open_it()

    def work() -> None:
        tracker.log(1, ROW)
        tracker.close()

    thread, errors = _in_thread(work)
    thread.join()
    if errors:
        raise Nonconforming(
            f"another thread than the opener's cannot call it: {type(errors[0]).__name__}: {errors[0]}; open nothing "
            "that is bound to a thread"
        )


def continues_a_resumed_run(trial: Trial) -> None:
    """Check that the tracker opens again on the folder of a run that was killed, goes back, and takes later rows."""
    killed = trial.open_it()
    for step in (1, 2, 3):
        killed.log(step, ROW)
    again = trial.open_it()  # the first one was never closed
    again.rewind(2)
    again.log(3, ROW)
    again.close()
    killed.close()


def changes_nothing_of_the_run(trial: Trial) -> None:
    """Check that rows, the run's own files, random states, signals and the working directory stay as they are."""
    files = [trial.folder / name for name in OWN_FILES]
    for file in files:
        file.write_text("1\n")
    row = {"reward/mean": 0.5}
    before = process_state()
    tracker = trial.open_it()
    tracker.log(1, row)
    tracker.rewind(0)
    tracker.close()
    if row != {"reward/mean": 0.5}:
        raise Nonconforming("log writes to the row that it is given; copy it first")
    if changed := [file.name for file in files if not file.exists() or file.read_text() != "1\n"]:
        raise Nonconforming(f"it writes to {', '.join(changed)}, a file of the run itself; choose another name")
    if moved := [name for name, value in process_state().items() if value != before[name]]:
        raise Nonconforming(f"it changes the {', '.join(moved)} of the process, on which the run's results depend")


CHECKS: tuple[Check, ...] = (
    opens_and_closes,
    takes_every_row_of_a_run,
    is_called_from_another_thread,
    continues_a_resumed_run,
    changes_nothing_of_the_run,
)
"""Every check, in an order in which the first failure is the likely cause of others."""


def failures(section: TrackingSection) -> dict[str, str]:
    """Run every check on the one tracker that a section names; return a sentence by check, empty where it passed.

    Raises:
        ConfigError: there is no such tracker, its package is missing, or a setting is wrong.
        ValueError: the section names none, or several.
    """
    wanted = wanted_trackers(section)
    if len(wanted) != 1:
        raise ValueError(f"name one tracker, got {len(wanted)}")
    (_, opener, settings), *_ = wanted
    recipe = build_recipe({}).model_dump(mode="json")
    found: dict[str, str] = {}
    hung = ""
    for check in CHECKS:
        if hung:
            found[check.__name__] = f"not tried, since {hung}"
            continue
        with _trial(opener, recipe, settings) as trial:
            found |= _tried(check, trial)
        sentence = found[check.__name__]
        hung = next((each for each in (HANGS, STANDS) if sentence.startswith(each)), "")
    return found


def _tried(check: Check, trial: Trial) -> dict[str, str]:
    """Run a check under a limit of time; the last one in this thread, whose signal handlers it compares."""
    if check is changes_nothing_of_the_run:
        return run_checks([check], trial)
    stands = f"{STANDS}, and a run would get no row after it; give what it waits for a time limit"
    return run_within(LIMIT_S, check, trial) or {check.__name__: stands}


@contextmanager
def _trial(opener: OpenTracker, recipe: dict[str, Any], settings: dict[str, Any]) -> Iterator[Trial]:
    with tempfile.TemporaryDirectory(prefix="heliostat-tracker-", ignore_cleanup_errors=True) as folder:
        yield Trial(Path(folder), functools.partial(opener, Path(folder), recipe, **settings))
