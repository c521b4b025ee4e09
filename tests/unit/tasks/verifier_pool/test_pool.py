"""Verdicts from real worker processes, and every way in which a verifier can go wrong, for real."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

from heliostat.config import ConfigError
from heliostat.tasks import VerifierError, VerifierPool
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.tasks.verifiers.builtin import Function
from heliostat.types import Completion, Group, Problem, Prompt, StopReason
from tests.support.rewards import FAULTS
from tests.support.tasks import EXACT, REWARDS, make_task, reward
from tests.support.workers import worker_pids


def make_group(problem: Problem, texts: list[str]) -> Group:
    nothing = np.zeros(1, np.float32)
    completions = tuple(Completion((1,), nothing, nothing, StopReason.EOS, text) for text in texts)
    return Group(Prompt(problem, (1, 2)), completions, policy_step=7)


def make_groups(task: Task, size: int = 4) -> list[Group]:
    return [make_group(p, [str(p.answer) if i % 2 else f"{i}" for i in range(size)]) for p in task.train]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_groups_come_back_in_order_with_one_verdict_per_completion() -> None:
    task = make_task(num=40)
    groups = make_groups(task)
    with VerifierPool([task]) as pool:
        verified = pool.verify(groups)
    for before, after in zip(groups, verified, strict=True):
        assert (after.prompt, after.completions, after.policy_step) == (before.prompt, before.completions, 7)
        right = [completion.text == before.prompt.problem.answer for completion in before.completions]
        assert [verdict.success for verdict in after.verdicts] == right
        assert after.rewards == [float(success) for success in right]
        assert [verdict.scores for verdict in after.verdicts] == [{"exact": float(success)} for success in right]


def test_groups_announced_early_and_out_of_order_are_judged_the_same() -> None:
    task = make_task(num=10)
    groups = make_groups(task)
    with VerifierPool([task]) as pool:
        judging = pool.begin()
        for index in (7, 2, 5):
            judging.submit(index, groups[index])
        assert judging.finish(groups) == pool.verify(groups)


@pytest.mark.slow
def test_verdicts_do_not_depend_on_workers_or_on_the_order_of_submission() -> None:
    task = make_task(EXACT, reward("length"), num=30, shaped=True)
    groups = make_groups(task)
    with VerifierPool([task]) as pool:
        expected = pool.verify(groups)
    with VerifierPool([make_task(EXACT, reward("length"), num=30, shaped=True, num_workers=3)]) as pool:
        futures = [pool.submit(group) for group in reversed(groups)]
        assert [future.result() for future in reversed(futures)] == expected


def test_several_tasks_share_a_pool() -> None:
    first, second = make_task(name="first"), make_task(reward("always"), name="second")
    with VerifierPool([first, second]) as pool:
        a, b = pool.verify([make_group(first.train[0], ["?"]), make_group(second.train[0], ["?"])])
    assert (a.verdicts[0].success, b.verdicts[0].success) == (False, True)


@pytest.mark.slow
def test_success_needs_full_marks_from_every_counted_verifier_and_is_kept_apart_from_reward() -> None:
    problem = make_task().train[3]
    right, wrong = str(problem.answer), "nothing"
    cases = [
        # verifiers, shaped, (success, reward) of the right and of the wrong answer
        ((EXACT,), False, (True, 1.0), (False, 0.0)),
        ((EXACT, reward("half")), False, (False, 0.0), (False, 0.0)),
        ((EXACT, reward("half")), True, (False, 1.5), (False, 0.5)),
        ((EXACT, WeightedVerifier("half", Function(f"{REWARDS}:half"), weight=0.0)), True, (True, 1.0), (False, 0.0)),
        ((WeightedVerifier("exact", EXACT.verifier, weight=0.2), reward("always")), True, (True, 1.2), (False, 1.0)),
        ((EXACT, reward("scaled", factor=2.0)), True, (False, 3.0), (False, 2.0)),
        ((EXACT, reward("applies_to_digits")), True, (True, 2.0), (False, 0.0)),
    ]
    for verifiers, shaped, expected_right, expected_wrong in cases:
        task = make_task(*verifiers, shaped=shaped)
        with VerifierPool([task]) as pool:
            verdicts = pool.judge(problem, [right, wrong]).result()
        assert [(verdict.success, pytest.approx(verdict.reward)) for verdict in verdicts] == [
            expected_right,
            expected_wrong,
        ]
        assert not any(verdict.failure for verdict in verdicts)


def test_a_problem_to_which_no_verifier_applies_is_a_failure() -> None:
    task = make_task(reward("never_applies"))
    with VerifierPool([task]) as pool:
        (verdict,) = pool.judge(task.train[0], ["1"]).result()
    assert (verdict.reward, verdict.success, verdict.failure) == (0.0, False, "no verifier applies to this problem")


def test_verifiers_see_the_answer_after_the_marker_or_the_whole_completion() -> None:
    whole = WeightedVerifier("length", Function(f"{REWARDS}:length"), weight=0.0, sees="completion")
    task = make_task(EXACT, whole, answer_after="#")
    answer = str(task.train[0].answer)
    texts = [f"# {answer}", f"# 9 # {answer} \n", answer, f"# {answer} or 9", "#", ""]
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(task.train[0], texts).result()
    assert [verdict.success for verdict in verdicts] == [True, True, False, False, False, False]
    assert [verdict.scores["length"] for verdict in verdicts] == [len(text.strip()) for text in texts]
    assert not any(verdict.failure for verdict in verdicts)


def test_chat_problems_reach_functions_as_chats() -> None:
    messages = ({"role": "system", "content": "Echo."}, {"role": "user", "content": "hello"})
    problem = Problem("p", "sums", messages, {}, None)
    task = make_task(reward("chat"), train=(problem,), heldout=(problem,))
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(problem, ["hello", "bye"]).result()
    assert [verdict.success for verdict in verdicts] == [True, False]


def test_workers_of_light_verifiers_load_nothing_heavy() -> None:
    task = make_task(reward("no_torch"))
    with VerifierPool([task]) as pool:
        (verdict,) = pool.judge(task.train[0], ["x"]).result()
    assert verdict.success, verdict.failure


EXPECTED = {
    "hangs": "no verdict within 0.5 s",
    "hangs_holding_the_gil": "no verdict within 0.5 s",
    "hangs_with_children": "no verdict within 0.5 s",
    "raises": "raised RuntimeError: the judge is out",
    "exits": "raised SystemExit: no more",
    "dies": "process died (exit code 3)",
    "crashes": "process died (signal 11)",
    "eats_memory": "raised MemoryError",
    "not_a_number": "a score must be finite, got nan",
    "infinite": "a score must be finite, got inf",
    "too_many": "returned 2 rewards for 1 completion",
    "too_few": "returned 0 rewards for 1 completion",
    "bare_float": "returned float, expected a list",
    "word": "a score must be a number, got str",
    "recurses": "raised RecursionError",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_its_own_sample_and_nothing_else(fault: str) -> None:
    task = make_task(reward("faulty"), timeout_s=0.5, memory_mb=256, num=3)
    right = [str(problem.answer) for problem in task.train]
    with VerifierPool([task]) as pool:
        futures = [
            pool.judge(p, [a, f"{fault} {os.getpid()}", "wrong", a]) for p, a in zip(task.train, right, strict=True)
        ]
        results = [future.result() for future in futures]
    for first, broken, wrong, last in results:
        assert (first.success, wrong.success, last.success) == (True, False, True)
        assert [first.failure, wrong.failure, last.failure] == ["", "", ""]
        assert (broken.reward, broken.success) == (0.0, False)
        assert EXPECTED[fault] in broken.failure


def test_programs_that_a_verifier_started_end_with_it() -> None:
    marker = f"heliostat-test-{os.getpid()}-{time.monotonic_ns()}"
    task = make_task(reward("faulty"), timeout_s=1.0)
    with VerifierPool([task]) as pool:
        (verdict,) = pool.judge(task.train[0], [f"hangs_with_children {marker}"]).result()
    assert verdict.failure
    time.sleep(0.2)
    assert [line for line in command_lines() if marker in line] == []


def command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:  # it ended meanwhile
            continue
    return [line for line in lines if "pytest" not in line]


def test_on_failure_stop_ends_the_run_with_the_task_the_problem_and_the_way_out() -> None:
    task = make_task(reward("faulty"), on_failure="stop")
    with VerifierPool([task]) as pool:
        with pytest.raises(VerifierError, match=r"'sums', problem sums/0: .*the judge is out.*on_failure = 'zero'"):
            pool.verify([make_group(task.train[0], ["raises"])])
        assert pool.judge(task.train[0], ["1"]).result()[0].success  # the pool itself goes on


@pytest.mark.slow
def test_no_text_is_judged_twice_when_a_slow_neighbour_is_killed(tmp_path: Path) -> None:
    """Results that were reported before a worker died are kept."""
    problem = Problem("p", "sums", "q", {"path": str(tmp_path / "log"), "answer": "1"}, "1")
    task = make_task(reward("log_call"), reward("faulty"), train=(problem,), heldout=(problem,), timeout_s=0.5)
    texts = ["a", "dies", "b", "hangs", "c"]
    with VerifierPool([task]) as pool:
        verdicts = pool.judge(problem, texts).result()
    assert [bool(verdict.failure) for verdict in verdicts] == [False, True, False, True, False]
    calls = (tmp_path / "log").read_text().split()
    assert sorted(set(calls)) == sorted(texts)
    assert calls.count("dies") == calls.count("hangs") == 1


def test_a_worker_killed_from_outside_is_replaced() -> None:
    task = make_task()
    with VerifierPool([task]) as pool:
        pool.verify(make_groups(task))
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGKILL)
        verified = pool.verify(make_groups(task))
        assert worker_pids() != [pid]
    assert all(len(group.verdicts) == 4 and not any(v.failure for v in group.verdicts) for group in verified)


def test_leaving_the_block_ends_the_workers_even_in_the_middle_of_a_verdict() -> None:
    task = make_task(reward("faulty"), timeout_s=600.0, num_workers=2)
    with VerifierPool([task]) as pool:
        pool.judge(task.train[0], ["1"]).result()
        futures = [pool.judge(problem, ["hangs", "hangs"]) for problem in task.train]
        wait(futures, timeout=0.3)
        pids = worker_pids()
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)
    for future in futures:
        with pytest.raises(VerifierError, match="pool was closed"):
            future.result(timeout=5)


ORPHANED = """
import os, sys, time
from heliostat.tasks import VerifierPool
from tests.support.tasks import make_task, reward
from tests.support.workers import worker_pids
task = make_task(reward("faulty"), timeout_s=0.5)
pool = VerifierPool([task]).__enter__()
pool.judge(task.train[0], ["1"]).result()
print(*worker_pids(), flush=True)
if sys.argv[1:]:
    pool.judge(task.train[0], sys.argv[1:])
    time.sleep(0.3)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("texts", [[], ["hangs_holding_the_gil"]], ids=["idle", "hanging"])
def test_workers_end_when_their_parent_is_killed(texts: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED, *texts], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    for _ in range(300):
        if not alive(pid):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_verifiers_that_cannot_be_loaded_fail_every_verdict_with_the_reason() -> None:
    task = make_task(WeightedVerifier("lost", Function("no_such_module:f")))
    with VerifierPool([task]) as pool, pytest.raises(VerifierError, match="cannot import 'no_such_module'"):
        pool.verify(make_groups(task))


def test_misuse_is_refused_in_one_sentence() -> None:
    task = make_task()
    with pytest.raises(ConfigError, match="two tasks have the same name"):
        VerifierPool([task, task])
    pool = VerifierPool([task])
    with pytest.raises(RuntimeError, match="only inside its `with` block"):
        pool.judge(task.train[0], ["1"])
    with pool, pytest.raises(ValueError, match="belongs to task 'other'"):
        pool.judge(make_task(name="other").train[0], ["1"])


def test_an_empty_group_has_no_verdicts() -> None:
    task = make_task()
    with VerifierPool([task]) as pool:
        assert pool.verify([]) == []
        assert pool.verify([make_group(task.train[0], [])])[0].verdicts == ()
