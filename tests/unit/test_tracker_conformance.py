"""The promises of a tracker: shipped ones keep them, and each of a row of broken ones is told by its promise."""

import random
import threading

import pytest

from heliostat.config import TrackingSection
from heliostat.tracker_conformance import CHECKS, failures
from tests.support.own_parts import Lines


def test_an_own_tracker_that_keeps_them_is_let_in():
    assert set(failures(TrackingSection(trackers=("tests.support.own_parts:Lines",))).values()) == {""}


def test_tensorboard_keeps_them():
    pytest.importorskip("tensorboard")
    assert set(failures(TrackingSection(tensorboard=True)).values()) == {""}


class NeedsARow(Lines):
    rows = 0

    def log(self, step, values):
        self.rows += 1

    def close(self):
        1 / self.rows


class OnlyForward(Lines):
    last = -1

    def log(self, step, values):
        if step <= self.last:
            raise ValueError(f"step {step} after {self.last}")
        self.last = step


class OneThread(Lines):
    def __init__(self, folder, recipe):
        super().__init__(folder, recipe)
        self.opened_in = threading.get_ident()

    def log(self, step, values):
        if threading.get_ident() != self.opened_in:
            raise RuntimeError("made in another thread")


class NewFolder(Lines):
    def __init__(self, folder, recipe):
        super().__init__(folder, recipe)
        (folder / "mine").mkdir()


class Shuffles(Lines):
    def log(self, step, values):
        random.random()


BROKEN = {
    "opens_and_closes": NeedsARow,
    "takes_every_row_of_a_run": OnlyForward,
    "is_called_from_another_thread": OneThread,
    "continues_a_resumed_run": NewFolder,
    "changes_nothing_of_the_run": Shuffles,
}


@pytest.mark.parametrize("promise", BROKEN)
def test_each_broken_promise_is_found(promise):
    found = failures(TrackingSection(trackers=(f"{__name__}:{BROKEN[promise].__name__}",)))
    assert [name for name, sentence in found.items() if sentence] == [promise]
    assert list(BROKEN) == [check.__name__ for check in CHECKS]


@pytest.mark.parametrize("file", ["metrics.jsonl", "recipe.toml"])
def test_a_tracker_that_writes_to_the_runs_own_files_is_found(file):
    section = TrackingSection(trackers=("tests.support.own_parts:Lines",))
    section = section.model_copy(update={"tracker_settings": {"tests.support.own_parts:Lines": {"file": file}}})
    assert f"it writes to {file}" in failures(section)["changes_nothing_of_the_run"]


class ClosesNever(Lines):
    def close(self):
        threading.Event().wait()


def test_a_close_that_hangs_is_found_and_tried_once(monkeypatch):
    monkeypatch.setattr("heliostat.tracker_conformance.CLOSE_S", 0.05)
    first, *others = failures(TrackingSection(trackers=(f"{__name__}:ClosesNever",))).values()
    assert "close does not return" in first
    assert all(sentence.startswith("not tried") for sentence in others)


class LogsNever(Lines):
    def log(self, step, values):
        threading.Event().wait()


def test_a_log_that_hangs_is_found_and_no_further_promise_is_tried(monkeypatch):
    monkeypatch.setattr("heliostat.tracker_conformance.LIMIT_S", 1.0)
    first, second, *others = failures(TrackingSection(trackers=(f"{__name__}:LogsNever",))).values()
    assert first == ""
    assert "a call of log or rewind does not return" in second
    assert all(sentence.startswith("not tried, since opening it or a call") for sentence in others)
    assert len(others) == 3


class EndsTheProgram(Lines):
    def log(self, step, values):
        raise SystemExit(3)


def test_a_part_that_ends_the_program_breaks_a_promise():
    found = failures(TrackingSection(trackers=(f"{__name__}:EndsTheProgram",)))
    assert found["takes_every_row_of_a_run"] == "it raises SystemExit: 3"
