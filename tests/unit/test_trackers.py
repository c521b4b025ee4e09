"""Trackers beside metrics.jsonl: every row arrives, a resumed run goes on where it was, and no failure ends a run."""

import contextvars
import json
import sys
import threading
import time
import types

import pytest

from heliostat.config import ConfigError, TrackingSection
from heliostat.trackers import MAX_FAILURES, Tolerant, open_services


class Service:
    """A stand-in for the module of W&B or trackio; ``fails`` names the calls that raise."""

    def __init__(self, *fails, error=None):
        self.calls, self.fails, self.error = [], set(fails), error or ConnectionError("service process died")

    def module(self, name):
        module = types.ModuleType(name)
        module.init = lambda **options: self._called("init", options)
        module.log = lambda values: self._called("log", values)
        module.finish = lambda: self._called("finish", {})
        module.define_metric = lambda key, **options: self._called("define_metric", {key: options})
        module.__spec__ = types.SimpleNamespace(name=name)
        return module

    def _called(self, name, options):
        self.calls.append((name, options))
        if name in self.fails:
            raise self.error

    def wait_for(self, name, number):
        """Until it was called so often; trackers are asked in a thread of their own."""
        until = time.monotonic() + 60
        while len(self.named(name)) < number and time.monotonic() < until:
            time.sleep(0.001)
        assert len(self.named(name)) == number

    def named(self, name):
        return [options for called, options in self.calls if called == name]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open trackers on a stand-in service; what people are told is in ``notes``."""

    def open_it(service, package="wandb", folder=tmp_path, notes=None):
        monkeypatch.setitem(sys.modules, package, service.module(package))
        notes = [] if notes is None else notes
        return open_services(TrackingSection(**{package: "project"}), folder, {"train": 1}, notes.append)

    return open_it


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for tracker in open_services(TrackingSection(tensorboard=True), tmp_path, {}, print):
        tracker.log(3, {"reward/mean": 0.25})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.25)]
    (report,) = events.Tensors("report/text_summary")
    assert report.tensor_proto.string_val == [str(tmp_path / "report.html").encode()]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_every_row_is_sent_with_its_step_as_a_value_and_an_axis(opened, tmp_path, package):
    service = Service()
    (tracker,) = opened(service, package)
    steps = [-2, -1, 0, 1, 2, 1, 2]  # a warm start, and a rollback
    for step in steps:
        tracker.log(step, {"loss/sft": 1.0})
    tracker.close()
    assert [row["step"] for row in service.named("log")] == steps
    assert service.named("define_metric")[1] == {"*": {"step_metric": "step"}}
    (init,) = service.named("init")
    config = {"train": 1, "report": str(tmp_path / "report.html")}
    assert (init["project"], init["name"], init["config"]) == ("project", tmp_path.name, config)
    assert service.calls[-1] == ("finish", {})


def test_a_service_that_keeps_its_run_in_a_context_variable_gets_every_row(opened):
    current = contextvars.ContextVar("run", default=None)

    class InContext(Service):
        """Like trackio 0.43, which refuses rows where its ``init`` was not called."""

        def _called(self, name, options):
            if name == "init":
                current.set("run")
            if name == "log" and current.get() is None:
                raise RuntimeError("call init first")
            super()._called(name, options)

    service, notes = InContext(), []
    (tracker,) = opened(service, "trackio", notes=notes)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert notes == []
    assert service.named("log") == [{"reward/mean": 0.5, "step": 1}]


def test_a_resumed_run_continues_its_own_run_of_the_service(opened, tmp_path):
    sessions = [Service() for _ in range(3)]
    opened(sessions[0])
    opened(sessions[1])
    (tmp_path / "another").mkdir()
    opened(sessions[2], folder=tmp_path / "another")
    first, again, other = (service.named("init")[0] for service in sessions)
    assert first["id"] == again["id"] != other["id"]
    assert first["resume"] == "allow"
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": first["id"]}


def test_trackio_resumes_by_name_and_only_what_is_this_folders(opened):
    first, again = Service(), Service()
    opened(first, "trackio")
    opened(again, "trackio")
    assert [service.named("init")[0]["resume"] for service in (first, again)] == ["never", "allow"]


@pytest.mark.parametrize("call", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_said_once_and_ends_nothing(opened, call):
    service, notes = Service(call), []
    (tracker,) = opened(service, notes=notes)
    for step in range(5):
        tracker.log(step, {"reward/mean": 0.5})
    tracker.rewind(2)
    tracker.close()
    assert notes == ["wandb failed (service process died); the run continues, and metrics.jsonl has every metric"]


def test_a_service_that_recovers_gets_the_later_rows_and_a_dead_one_is_left_alone(opened):
    service = Service("log")
    (tracker,) = opened(service)
    tracker.log(1, {})
    service.wait_for("log", 1)
    service.fails.clear()
    tracker.log(2, {})
    service.wait_for("log", 2)
    service.fails.add("log")
    for step in range(3, 10):
        tracker.log(step, {})
    tracker.close()
    assert [row["step"] for row in service.named("log")] == [1, 2, *range(3, 3 + MAX_FAILURES)]
    assert service.named("finish") == [{}]


def test_an_interrupt_is_no_failure(opened):
    with pytest.raises(KeyboardInterrupt):
        opened(Service("init", error=KeyboardInterrupt()))


@pytest.mark.parametrize("call", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [SystemExit(1), RecursionError("deep"), ConfigError("no such project")])
def test_a_client_that_tries_to_end_the_process_ends_nothing(opened, call, error):
    if (call, type(error)) == ("init", ConfigError):
        pytest.skip("what is said at once, before the model loads")
    service, notes = Service(call, error=error), []
    (tracker,) = opened(service, notes=notes)
    tracker.log(1, {})
    tracker.close()
    assert [note.partition(" (")[0] for note in notes] == ["wandb failed"]


class Hanging(Service):
    """Holds every call of one name until it is let go."""

    def __init__(self, name):
        super().__init__()
        self.name, self.go = name, threading.Event()

    def _called(self, name, options):
        super()._called(name, options)
        if name == self.name:
            self.go.wait(60)


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_tracker_that_hangs_holds_nothing_up(opened, monkeypatch, call):
    monkeypatch.setattr("heliostat.trackers.CLOSE_S", 0.05)
    service, notes = Hanging(call), []
    (tracker,) = opened(service, notes=notes)
    for step in range(100):
        tracker.log(step, {})
    tracker.close()
    assert not service.go.is_set()
    assert notes == [
        "wandb has not taken all rows within 0.05 s; the run ends without it, and metrics.jsonl has every metric"
    ]
    service.go.set()
    service.wait_for("finish", 1)
    assert [row["step"] for row in service.named("log")] == list(range(100))


def test_a_row_is_what_it_was_when_it_was_logged(opened):
    service, row = Hanging("log"), {"reward/mean": 1.0}
    (tracker,) = opened(service)
    tracker.log(1, row)
    row["reward/mean"] = 2.0
    service.go.set()
    tracker.close()
    assert service.named("log") == [{"reward/mean": 1.0, "step": 1}]


def test_a_missing_key_is_a_sentence(opened):
    UsageError = type("UsageError", (Exception,), {})
    with pytest.raises(ConfigError, match=r"tracking.wandb has no key \(api_key not configured.*wandb login"):
        opened(
            Service("init", error=UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])"))
        )


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_starts(tmp_path, monkeypatch, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'heliostat\[{package}\]'"):
        open_services(TrackingSection(**{package: "project"}), tmp_path, {}, print)
    assert not list(tmp_path.iterdir())


def test_what_cannot_even_be_opened_is_not_asked():
    notes = []

    def broken():
        raise OSError("no space left")

    tracker = Tolerant("tensorboard", broken, notes.append)
    tracker.log(1, {})
    tracker.close()
    assert len(notes) == 1
