"""Reward functions as people have them, through real verifier processes."""

import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from heliostat.config import ConfigError
from heliostat.tasks import VerifierPool
from heliostat.tasks.settings import check_needs
from heliostat.tasks.task import WeightedVerifier
from heliostat.tasks.verifier_pool.worker import as_score
from heliostat.tasks.verifiers.builtin import Function
from heliostat.tasks.verifiers.reward_functions import single_reward
from heliostat.types import Completion, Group, Problem, Prompt, StopReason
from tests.support.tasks import EXACT, REWARDS, make_task, reward


def group_of(problem: Problem, texts: list[str], lengths: list[int]) -> Group:
    completions = tuple(
        Completion((7,) * length, np.zeros(length, np.float32), np.zeros(length, np.float32), StopReason.EOS, text)
        for text, length in zip(texts, lengths, strict=True)
    )
    return Group(Prompt(problem, (1, 2)), completions)


@pytest.mark.parametrize(
    "returned",
    [
        [1],
        [1.0],
        (1.0,),
        [True],
        np.array([1.0]),
        np.array([1], np.int64),
        [np.float32(1)],
        [np.bool_(True)],
        [np.array(1.0)],
        [Fraction(1)],
        [Decimal("1.0")],
        (1.0 for _ in range(1)),
        map(float, ["1"]),
        {1.0},
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_one_number_in_anything_that_can_be_gone_through(returned: object) -> None:
    assert as_score(single_reward(returned, "f")) == 1.0


def test_torch_scalars_are_numbers() -> None:
    import torch

    for returned in (
        torch.tensor([1.0]),
        [torch.tensor(1.0)],
        [torch.tensor([1.0])],
        torch.tensor([1], dtype=torch.bfloat16),
    ):
        assert as_score(single_reward(returned, "f")) == 1.0


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "'f' returned None, expected a list with one number per completion"),
        (1.0, "'f' returned float, expected"),
        (np.array(1.0), "'f' returned a bare number, expected"),
        ("1.0", "'f' returned str, expected"),
        (b"1", "'f' returned bytes, expected"),
        ({"score": 1.0}, "'f' returned dict with 'score', expected"),
        ([], "'f' returned 0 rewards for 1 completion"),
        ([1.0, 1.0], "'f' returned 2 rewards for 1 completion"),
        (["1.0"], "a score must be a number, got str '1.0'"),
        ([[1.0]], "a score must be a number, got list"),
        ([{"score": 1.0}], "a score must be a number, got dict"),
        ([1j], "a score must be a number, got complex"),
        ([float("nan")], "a score must be finite, got nan"),
        ([float("-inf")], "a score must be finite, got -inf"),
        ([np.float32("inf")], "a score must be finite, got inf"),
        ([Decimal("NaN")], "a score must be finite, got nan"),
    ],
    ids=repr,
)
def test_anything_else_is_said_in_one_sentence(returned: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        as_score(single_reward(returned, "f"))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_none_does_not_apply() -> None:
    assert as_score(single_reward([None], "f")) is None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """Answers one line per line, over each connection; how many connections it had is written beside it."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def talk(connection: socket.socket) -> None:
        while connection.recv(100):
            connection.sendall(f"{len(accepted)}\n".encode())

    def accept() -> None:
        while True:
            try:
                accepted.append(listener.accept()[0])
            except OSError:
                return
            threading.Thread(target=talk, args=(accepted[-1],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_asynchronous_functions_keep_a_client_for_the_life_of_their_process(server: int) -> None:
    """The connection of the first call serves the others, and two functions share a loop."""
    task = make_task(reward("keeps_a_client", port=server), reward("shares_the_loop", port=server), timeout_s=30.0)
    with VerifierPool([task]) as pool:
        verdicts = [pool.judge(problem, ["a", "b"]).result() for problem in task.train[:3]]
    assert [verdict.failure for pair in verdicts for verdict in pair] == [""] * 6
    assert all(verdict.scores["keeps_a_client"] == 1.0 for pair in verdicts for verdict in pair)


def test_an_exception_in_one_asynchronous_call_leaves_the_loop_to_the_next(server: int) -> None:
    task = make_task(reward("keeps_a_client", port=server), timeout_s=30.0)
    with VerifierPool([task]) as pool:
        first, failed, last = pool.judge(task.train[0], ["a", "raise", "b"]).result()
    assert (first.success, last.success) == (True, True)
    assert "raised RuntimeError: asked to" in failed.failure


def test_sampled_tokens_are_given_to_functions_that_name_them() -> None:
    task = make_task(EXACT, reward("counts_tokens"), shaped=True)
    problem = task.train[0]
    with VerifierPool([task]) as pool:
        judged = pool.submit(group_of(problem, [str(problem.answer), "?"], [3, 5])).result()
        (unsampled,) = pool.judge(problem, [str(problem.answer)]).result()
    assert [verdict.scores["counts_tokens"] for verdict in judged.verdicts] == [3.0, 5.0]
    assert (unsampled.scores, unsampled.success, unsampled.failure) == ({"exact": 1.0}, True, "")


@pytest.mark.slow
def test_a_failure_names_the_verifier_and_what_it_read() -> None:
    task = make_task(EXACT, reward("faulty"), timeout_s=1.0, answer_after="= ")
    with VerifierPool([task]) as pool:
        (_, raised, hung, died) = pool.judge(task.train[0], ["= 1", "so = raises", "so = hangs", "so = dies"]).result()
    assert raised.failure == "verifier 'faulty' raised RuntimeError: the judge is out; it read 'raises'"
    assert hung.failure == "verifier 'faulty': no verdict within 1 s; it read 'so = hangs'"
    assert died.failure == "verifier 'faulty': the verifier's process died (exit code 3); it read 'so = dies'"


def test_a_long_text_is_quoted_by_its_end() -> None:
    task = make_task(reward("faulty"))
    with VerifierPool([task]) as pool:
        (verdict,) = pool.judge(task.train[0], ["raises " + "x" * 5000 + "the end"]).result()
    assert verdict.failure.endswith("the end'")
    assert len(verdict.failure) < 300


def test_arguments_that_a_function_does_not_name_are_refused_with_those_it_does() -> None:
    for name in ("scaled", "takes_limit"):
        task = make_task(WeightedVerifier("f", Function(f"{REWARDS}:{name}", {"facter": 2})))
        with pytest.raises(ConfigError, match=r"takes no argument 'facter'.*; it takes: (factor|limit)$"):
            check_needs(task)
    check_needs(make_task(reward("scaled", factor=2.0)))


def test_a_function_that_needs_token_ids_needs_no_column_for_them() -> None:
    check_needs(make_task(reward("counts_tokens")))


# -- functions of the shape of TRL's own -------------------------------------------------------------------------------


def test_functions_of_the_shape_of_trls_own() -> None:
    """A format reward, an accuracy reward with a column, and a length penalty made by another function."""
    verifiers = [reward(name) for name in ("has_thoughts", "is_accurate", "not_too_long")]
    problem = Problem("p", "sums", ({"role": "user", "content": "1+1"},), {"solution": "2"}, "2")
    task = make_task(*verifiers, shaped=True)
    task = make_task(*verifiers, shaped=True, train=(problem,), heldout=task.heldout)
    with VerifierPool([task]) as pool:
        judged = pool.submit(group_of(problem, ["<think>\nx\n</think>\n2", "3"], [4, 12])).result()
    assert [dict(verdict.scores) for verdict in judged.verdicts] == [
        {"has_thoughts": 1.0, "is_accurate": 1.0, "not_too_long": 0.0},
        {"has_thoughts": 0.0, "is_accurate": 0.0, "not_too_long": -1.0},
    ]
    assert judged.rewards == [2.0, -1.0]


@pytest.mark.slow
def test_trls_own_functions_unchanged() -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

    from heliostat.tasks.data.in_memory import registering
    from heliostat.tasks.settings import build_verifiers

    functions = [accuracy_reward, think_format_reward, get_soft_overlong_punishment(10, 5)]
    with registering() as given:
        tables = [{"name": given.function(function), "sees": "completion"} for function in functions]
        verifiers = build_verifiers(tables)
    problem = Problem("p", "sums", ({"role": "user", "content": "1+1"},), {"solution": "$2$"}, "2")
    task = make_task(*verifiers, shaped=True, train=(problem,), heldout=(), timeout_s=60.0, memory_mb=8192)
    check_needs(task)
    with VerifierPool([task]) as pool:
        texts = ["<think>\nx\n</think>\n\\boxed{2}", r"<think> \boxed{3}"]
        judged = pool.submit(group_of(problem, texts, [4, 12])).result()
    assert [verdict.failure for verdict in judged.verdicts] == ["", ""]
    assert judged.rewards == [2.0, -1.0]
