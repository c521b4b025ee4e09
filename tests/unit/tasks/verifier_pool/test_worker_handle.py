"""Workers end with everything they started, within their limits, whatever a verifier did."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heliostat.tasks import VerifierError, VerifierPool
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifier_pool import worker_handle
from heliostat.tasks.verifiers.builtin import Function
from tests.support.hostile_rewards import ESCAPES, LIES
from tests.support.tasks import make_task
from tests.support.workers import worker_pids

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and prctl")


def hostile_task(**settings: object) -> Task:
    verifier = WeightedVerifier("act", Function("tests.support.hostile_rewards:act"))
    return make_task(verifier, **{"timeout_s": 1.0, **settings})


def running(marker: str) -> list[int]:
    """Programs whose command line holds ``marker``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "cmdline").read_text() and (folder / "stat").read_text().split(") ")[1][0] != "Z":
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return [pid for pid in found if pid != os.getpid()]


def comes_true(condition) -> bool:
    """Whether it does within a minute."""
    return any(condition() or time.sleep(0.05) for _ in range(1200))


@pytest.fixture
def marker():
    mark = f"heliostat-test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    for pid in running(mark):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@linux
@pytest.mark.parametrize("escape", [function.__name__ for function in ESCAPES])
def test_nothing_that_a_verifier_started_outlives_the_pool(escape: str, marker: str) -> None:
    task = hostile_task(timeout_s=5.0)
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(task.train[0], ["a", f"{escape} {marker}", "b"]).result()
    assert [verdict.success for verdict in verdicts][::2] == [True, True]
    assert running(marker) == []


ORPHANED = """
import os, sys
from heliostat.tasks import VerifierPool
from tests.unit.tasks.verifier_pool.test_worker_handle import hostile_task
task = hostile_task(timeout_s=60.0)
pool = VerifierPool([task]).__enter__()
pool.judge(task.train[0], [sys.argv[1]]).result()
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@linux
@pytest.mark.parametrize("escape", ["child_in_a_session", "daemon", "daemon_without_environment"])
def test_nothing_that_a_verifier_started_outlives_a_killed_run(escape: str, marker: str) -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED, f"{escape} {marker}"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert comes_true(lambda: not running(marker))


@pytest.mark.slow
@linux
def test_a_stopped_supervisor_is_ended_too(marker: str) -> None:
    task = hostile_task(timeout_s=5.0)
    with VerifierPool([task]) as pool:
        assert pool.judge(task.train[0], [f"stop_the_supervisor {marker}"]).result()[0].success
    assert running(marker) == []


@pytest.mark.slow
@pytest.mark.parametrize("lie", [function.__name__ for function in LIES])
def test_a_worker_that_lies_costs_no_later_sample(lie: str) -> None:
    task = hostile_task()
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(task.train[0], ["a", lie, "b"]).result(timeout=120)
    failed = [bool(verdict.failure) for verdict in verdicts]
    # whom to blame is not known where the progress is overwritten: the first text without a verdict is, too
    assert failed == [False, True, False] or (lie == "false_number" and failed == [True, True, False])
    assert verdicts[2].success


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_worker_killed_while_it_starts_is_replaced(delay_s: float) -> None:
    task = hostile_task()
    with VerifierPool([task]) as pool:
        assert comes_true(worker_pids)
        time.sleep(delay_s)
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        assert pool.judge(task.train[0], ["a"]).result(timeout=120)[0].success


def test_a_system_that_starts_no_process_is_an_error_of_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_handle, "start_child", refuse)
    task = hostile_task()
    with VerifierPool([task]) as pool, pytest.raises(VerifierError, match=r"cannot be started: .*unavailable"):
        pool.judge(task.train[0], ["a"]).result(timeout=60)


LOADING = """
import sys, time
from heliostat.tasks.verifier_pool import worker_handle
from heliostat.tasks.task import WeightedVerifier
from heliostat.tasks.verifiers.builtin import Math
from heliostat.tasks.verifier_pool.pool import spec_of
from heliostat.tasks.verifier_pool.worker_handle import Worker
from tests.support.tasks import make_task
specs = [spec_of(make_task(WeightedVerifier("math", Math())))]
worker = Worker(specs)
if sys.argv[1] != "at once":
    worker.wire.send(specs, 10)
time.sleep(float(sys.argv[2]))
if sys.argv[1].isdigit():
    worker.child.process.send_signal(int(sys.argv[1]))
    worker.child.kill()
else:
    worker.child.connection.close()
    worker.child.process.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at once", "gone", str(int(signal.SIGTERM)), str(int(signal.SIGKILL))])
@pytest.mark.parametrize("delay_s", ["0.15", "0.6"])
def test_a_worker_stopped_while_it_loads_says_nothing(how: str, delay_s: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADING, how, delay_s], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_results_of_the_right_shape_pass_and_no_others() -> None:
    from heliostat.tasks.verifier_pool.batches import Batch, Job

    task = hostile_task()
    batch = Batch([Job(task, 0, task.train[0], ("a", "b"), tuple)])
    assert worker_handle.read_results(b'[[0, {"act": 1.0}, ""], [1, {}, "broke"]]', batch) == {
        0: ({"act": 1.0}, ""),
        1: ({}, "broke"),
    }
    wrong = [1, {}, [1], [[0, {}, ""]], [["0", {"act": 1}, ""]], [[0, {"act": "1"}, ""]], [[0, {"act": True}, ""]]]
    wrong += [[[0, {"other": 1.0}, ""]], [[2, {"act": 1.0}, ""]], [[-1, {"act": 1.0}, ""]], [[0, {"act": 1.0}]]]
    for said in wrong:
        with pytest.raises(ValueError, match=r"verdict|scores"):
            worker_handle.read_results(json.dumps(said).encode(), batch)
