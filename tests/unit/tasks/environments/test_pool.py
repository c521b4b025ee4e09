"""Episodes in real processes, and every way in which an environment can go wrong, for real."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path

import pytest

from heliostat.nested_runs import INSIDE, NestedRun
from heliostat.tasks.environments.building import describe
from heliostat.tasks.environments.contract import Environment, EnvironmentFailed, EnvironmentSpec, Step
from heliostat.tasks.environments.pool import EnvironmentNotLoaded, EnvironmentPool, NoOracle, PoolClosed
from tests.support.environments import FAULTS, spec_of

ROW = {"prompt": "add", "answer": "7"}


def play(pool: EnvironmentPool, actions: list[str], seed: int = 5) -> list[object]:
    """First observation, then the steps."""
    episode = pool.open(ROW, seed)
    futures: list[Future] = [episode.first, *(episode.step(action) for action in actions)]
    episode_results = [future.result(timeout=60) for future in futures]
    episode.close()
    return episode_results


def processes(pool: EnvironmentPool) -> list[int]:
    return [keeper.process.child.process.pid for keeper in pool.keepers if keeper.process]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_episode_is_answered_step_by_step() -> None:
    with EnvironmentPool(spec_of("Adder", settings={"start": 10})) as pool:
        assert play(pool, ["1", "2", "0"]) == [
            "add: 15",
            Step("total 16", 8.0, False, {"calls": 1}),
            Step("total 18", 9.0, False, {"calls": 1}),
            Step("total 18", 9.0, True, {"calls": 1}),
        ]
        assert pool.counts.num_calls == 4
        assert pool.counts.num_retries == pool.counts.num_replays == pool.counts.num_failures == 0
        assert 0 < pool.counts.slowest_s <= pool.counts.busy_s


def test_a_class_travels_by_value_where_no_process_can_import_it() -> None:
    class Local(Environment):
        def reset(self, problem, seed):
            return None

        def step(self, action):
            return Step(action[::-1])

    with EnvironmentPool(describe(Local, num_workers=1)) as pool:
        assert play(pool, ["abc"]) == ["", Step("cba")]


@pytest.mark.slow
def test_episodes_do_not_depend_on_the_number_of_processes_or_on_each_other() -> None:
    def run(num_workers: int, name: str) -> list[list[object]]:
        rng = random.Random(num_workers)
        with EnvironmentPool(spec_of(name, num_workers=num_workers)) as pool:
            episodes = [pool.open(ROW, seed=number // 2) for number in range(8)]
            results: list[list[Future]] = [[episode.first] for episode in episodes]
            turns = [number for number in range(8) for _ in range(4)]
            rng.shuffle(turns)
            for number in turns:
                results[number].append(episodes[number].step(str(len(results[number]))))
            return [[future.result() for future in futures] for futures in results]

    for name in ("Adder", "Draws"):
        alone = run(1, name)
        assert run(3, name) == alone
        assert alone[0] == alone[1] != alone[2]


def test_episodes_spread_over_processes_one_after_the_other() -> None:
    with EnvironmentPool(spec_of("Faulty", num_workers=2)) as pool:
        episodes = [pool.open(ROW, 0) for _ in range(4)]
        for episode in episodes:
            episode.first.result()
        keepers = [episode.keeper for episode in episodes]
        assert keepers[0] is keepers[2] is not keepers[1] is keepers[3]


def test_siblings_that_draw_from_global_generators_do_not_disturb_each_other() -> None:
    for name in ("Draws", "SeedsTheGlobal"):
        with EnvironmentPool(spec_of(name)) as pool:
            alone = play(pool, list("abcd"), seed=3)
            siblings = [pool.open(ROW, 3) for _ in range(2)]
            first = [sibling.first.result() for sibling in siblings]
            steps = [[sibling.step(action).result() for sibling in siblings] for action in "abcd"]
            assert [first[0], *(pair[0] for pair in steps)] == alone
            assert [first[1], *(pair[1] for pair in steps)] == alone
            assert play(pool, ["a"], seed=4)[0] != alone[0]


def test_without_isolation_siblings_disturb_each_other() -> None:
    with EnvironmentPool(spec_of("SeedsTheGlobal"), isolates_random=False) as pool:
        alone = play(pool, list("ab"), seed=3)
        first, second = pool.open(ROW, 3), pool.open(ROW, 3)
        interleaved = [first.step("a").result(), second.step("a").result(), first.step("b").result()]
        assert [interleaved[0], interleaved[2]] != alone[1:]


def test_an_oracle_is_asked_without_changing_the_episode() -> None:
    with EnvironmentPool(spec_of("Adder")) as pool:
        episode = pool.open(ROW, 5)
        assert episode.oracle().result() == "95"
        assert episode.step("90").result().observation == "total 95"
        assert episode.oracle().result() == "5"
    with EnvironmentPool(spec_of("Draws")) as pool:
        alone = play(pool, ["a", "b"])
        episode = pool.open(ROW, 5)
        first = [episode.first.result(), episode.step("a").result()]
        assert episode.oracle().result() == episode.oracle().result()
        assert [*first, episode.step("b").result()] == alone
    with EnvironmentPool(spec_of("Chatty")) as pool, pytest.raises(NoOracle, match=r"has no oracle\(\)"):
        pool.open(ROW, 0).oracle().result()


EXPECTED = {
    "hangs": "no answer within 1 s",
    "hangs_holding_the_gil": "no answer within 1 s",
    "hangs_with_children": "no answer within 1 s",
    "raises": "raised RuntimeError: the world is out",
    "exits": "raised SystemExit: no more",
    "dies": "process died (exit code 3)",
    "crashes": "process died (signal 11)",
    "eats_memory": "raised MemoryError",
    "recurses": "raised RecursionError",
    "sends_rubbish": "sent an invalid message",
    "sends_a_forged_step": "sent an invalid message (a reply to no request)",
    "sends_a_partial_message": "no answer within 1 s",
    "sends_an_endless_message": "sent an invalid message",
}


STAYS = {"raises", "exits", "recurses"}
"""Faults that leave their process as it was."""


@pytest.fixture
def marker(monkeypatch):
    mark = f"heliostat-test-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("TEST_MARKER", mark)
    yield mark
    for pid in running(mark):
        os.kill(pid, signal.SIGKILL)


def running(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_text() and alive(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_retried_once_and_costs_its_own_episode_alone(fault: str, tmp_path: Path, marker: str) -> None:
    log = tmp_path / "log"
    spec = spec_of("Faulty", settings={"log": str(log)}, timeout_s=1.0, memory_mb=256)
    with EnvironmentPool(spec) as pool:
        broken, neighbour = pool.open(ROW, 1, "problem 'p7'"), pool.open(ROW, 2)
        assert broken.step("3").result().observation == "total 4"
        assert neighbour.step("4").result().observation == "total 6"
        with pytest.raises(EnvironmentFailed) as caught:
            broken.step(fault).result()
        assert neighbour.step("5").result().observation == "total 11"
        with pytest.raises(EnvironmentFailed):
            broken.step("1").result()
        assert (pool.counts.num_retries, pool.counts.num_failures) == (1, 1)
        assert pool.counts.num_replays == (1 if fault in STAYS else 2)  # that of the neighbour's lost process
    message = str(caught.value)
    assert EXPECTED[fault] in message
    assert f"'tests.support.environments:Faulty' failed on problem 'p7' at turn 2, action '{fault}': " in message
    assert "\n" not in message
    calls = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert calls.count(fault) == 2
    assert running(marker) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "raises", "dies", "eats_memory"])
def test_a_fault_that_does_not_come_back_costs_nothing(fault: str, tmp_path: Path) -> None:
    spec = spec_of("Faulty", settings={"log": str(tmp_path / "log")}, timeout_s=1.0, memory_mb=256)
    with EnvironmentPool(spec) as pool:
        assert play(pool, ["3", f"once {fault}", "2"], seed=1)[1:] == [
            Step("total 4", 2.0, False, {"calls": 1}),
            Step("total 5", 2.5, False, {"calls": 1}),
            Step("total 7", 3.5, False, {"calls": 1}),
        ]
        assert (pool.counts.num_retries, pool.counts.num_replays, pool.counts.num_failures) == (1, 1, 0)


def test_a_reset_that_fails_is_retried_and_reported(tmp_path: Path) -> None:
    spec = spec_of("Faulty", settings={"log": str(tmp_path / "log")})
    with EnvironmentPool(spec) as pool:
        good = pool.open(ROW | {"fault": "once raises"}, 1)
        assert good.first.result() == "add: 1"
        bad = pool.open(ROW | {"fault": "raises"}, 1)
        with pytest.raises(EnvironmentFailed, match=r"failed on problem 'add' at reset: it raised RuntimeError"):
            bad.first.result()
        with pytest.raises(EnvironmentFailed, match=r"at reset"):
            bad.step("1").result()
        assert good.step("2").result().observation == "total 3"


def test_a_process_killed_from_outside_is_replaced_and_its_episodes_are_replayed() -> None:
    with EnvironmentPool(spec_of("Adder")) as pool:
        episodes = [pool.open(ROW, seed) for seed in range(3)]
        for episode in episodes:
            episode.step("1").result()
        (pid,) = processes(pool)
        os.kill(pid, signal.SIGKILL)
        assert any(not alive(pid) or time.sleep(0.01) for _ in range(1000))
        assert [episode.step("1").result().observation for episode in episodes] == ["total 2", "total 3", "total 4"]
        assert processes(pool) != [pid]
        assert pool.counts.num_replays == 3


def test_a_replay_that_shows_something_else_ends_the_episode() -> None:
    with EnvironmentPool(spec_of("Clock")) as pool:
        episode, neighbour = pool.open(ROW, 0), pool.open(ROW, 0)
        episode.step("look").result()
        neighbour.step("look").result()
        with pytest.raises(EnvironmentFailed, match=r"at turn 2, action 'die': its answer to turn 1 differs when"):
            episode.step("die").result()
        with pytest.raises(EnvironmentFailed, match=r"its answer to turn 1 differs"):
            neighbour.step("look").result()


def test_a_step_after_the_end_is_refused() -> None:
    with EnvironmentPool(spec_of("Adder")) as pool:
        episode = pool.open(ROW, 0)
        assert episode.step("0").result().done
        with pytest.raises(RuntimeError, match="the episode is over"):
            episode.step("1").result()
        episode.close()
        episode.close()
        with pytest.raises(RuntimeError, match="was closed"):
            episode.step("1")


def test_values_are_made_plain_and_bounded() -> None:
    with EnvironmentPool(spec_of("Chatty")) as pool:
        episode = pool.open(ROW, 1)
        assert episode.first.result() == [{"role": "user", "content": "hello ? 1"}]
        assert episode.step("messages").result() == Step([{"role": "tool", "content": "ok", "name": "f"}])
        assert episode.step("extras").result() == Step("e", 1.0, False, {"score": 3, "map": {"a": [1]}})
        assert episode.tools().result()[0]["function"]["name"] == "f"
        step = episode.step("numpy").result()
        assert step == Step("n", 0.5, True, {"success": True, "calls": 2})
        assert json.loads(json.dumps(step.info)) == step.info


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("nan", "a reward must be finite, got nan"),
        ("word", "a reward must be a number, got str"),
        ("success", r"info\['success'\] must be of type bool"),
        ("tuple", r"step\(\) must return a Step, got tuple"),
        ("none", r"step\(\) must return a Step, got NoneType"),
        ("bytes", "must be a text or a list of messages, got bytes"),
        ("no role", "a message must have a 'role' and a 'content'"),
        ("object", "not JSON serializable"),
        ("long", "longer than 1048576"),
        ("negative", r"info\['errors'\] must be of type int"),
        ("no such key", "raised KeyError"),
    ],
)
def test_values_of_the_wrong_shape_are_failures_of_the_environment(action: str, reason: str) -> None:
    with EnvironmentPool(spec_of("Chatty")) as pool, pytest.raises(EnvironmentFailed, match=reason):
        pool.open(ROW, 1).step(action).result()


def test_processes_load_nothing_heavy_and_start_no_run(monkeypatch) -> None:
    with EnvironmentPool(spec_of("NoImport")) as pool:
        episode = pool.open(ROW, 1)
        assert episode.first.result() == ""
        with pytest.raises(EnvironmentNotLoaded, match="raised NestedRun"):
            episode.step("train").result()
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(NestedRun), EnvironmentPool(spec_of("Adder")):
        pass


def test_an_environment_that_cannot_be_loaded_fails_every_future_with_the_reason() -> None:
    spec = EnvironmentSpec("no_such_module:Maze", num_workers=1)
    with EnvironmentPool(spec) as pool:
        episode = pool.open(ROW, 0)
        for future in (episode.first, episode.step("x")):
            with pytest.raises(EnvironmentNotLoaded, match=r"'no_such_module:Maze'.*cannot import 'no_such_module'"):
                future.result()


def test_open_and_step_never_wait() -> None:
    with EnvironmentPool(spec_of("Silent")) as pool:
        pool.open(ROW, 0).first.result()
        began = time.process_time()
        episodes = [pool.open(ROW, 0) for _ in range(4)]
        futures = [episode.step(str(turn)) for turn in range(2) for episode in episodes]
        assert not all(future.done() for future in futures)
        assert [future.result().observation for future in futures] == list("00001111")
        assert time.process_time() - began < 1.0


def test_calls_of_a_closed_episode_are_cancelled() -> None:
    with EnvironmentPool(spec_of("Silent")) as pool:
        episode, other = pool.open(ROW, 0), pool.open(ROW, 0)
        episode.first.result()
        futures = [episode.step(str(turn)) for turn in range(5)]
        episode.close()
        assert other.step("x").result().observation == "x"
        with pytest.raises(CancelledError):
            futures[-1].result()


def test_open_instances_are_closed_with_the_pool(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with EnvironmentPool(spec_of("Faulty", settings={"log": str(log)})) as pool:
        episodes = [pool.open(ROW, 0) for _ in range(3)]
        for episode in episodes:
            episode.first.result()
        episodes[0].close()
    assert log.read_text().count("close") == 3


@pytest.mark.slow
def test_leaving_the_block_ends_everything_even_in_the_middle_of_a_call() -> None:
    before = set(threading.enumerate())
    with EnvironmentPool(spec_of("Faulty", timeout_s=600.0, num_workers=2)) as pool:
        episodes = [pool.open(ROW, 0) for _ in range(6)]
        for episode in episodes:
            episode.first.result()
        futures = [episode.step("hangs") for episode in episodes]
        wait(futures, timeout=0.3)
        pids = processes(pool)
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) or Path(f"/proc/{pid}").exists() for pid in pids)
    assert set(threading.enumerate()) <= before
    for future in futures:
        with pytest.raises(PoolClosed, match="was closed"):
            future.result(timeout=5)
    with pytest.raises(PoolClosed):
        pool.open(ROW, 0).first.result(timeout=5)


@pytest.mark.slow
def test_leaving_the_block_at_once_ends_processes_that_are_loading() -> None:
    with EnvironmentPool(spec_of("Adder", num_workers=2)) as pool:
        future = pool.open(ROW, 0).first
    assert not any(keeper.is_alive() for keeper in pool.keepers)
    with pytest.raises(PoolClosed):
        future.result(timeout=5)


ORPHANED = """
import os, sys, time
from heliostat.tasks.environments.pool import EnvironmentPool
from tests.support.environments import spec_of
pool = EnvironmentPool(spec_of("Faulty")).__enter__()
episode = pool.open({"prompt": "?"}, 0)
episode.first.result()
print(pool.keepers[0].process.child.process.pid, flush=True)
if sys.argv[1:]:
    episode.step(sys.argv[1])
    time.sleep(0.3)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("actions", [[], ["hangs_holding_the_gil"]], ids=["idle", "hanging"])
def test_processes_end_when_their_parent_is_killed(actions: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED, *actions], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    assert any(not alive(pid) or time.sleep(0.1) for _ in range(300))


def test_episodes_are_opened_only_inside_the_block() -> None:
    with pytest.raises(RuntimeError, match="only inside its `with` block"):
        EnvironmentPool(spec_of("Adder")).open(ROW, 0)
