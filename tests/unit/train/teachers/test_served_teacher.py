"""A teacher on a server equals one in this process; what it said is kept, and its faults are named."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from heliostat.objectives.distillation import Distillation
from heliostat.rollout import Server
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.teacher import ModelTeacher, TeacherFailed
from heliostat.train.teachers.log_prob_cache import LogProbCache
from heliostat.train.teachers.scoring_routes import SCORING
from heliostat.train.teachers.served_log_probs import ServedLogProbs
from heliostat.train.teachers.served_teacher import ServedTeacher
from heliostat.types import Verdict
from tests.support.fake_server import edits, serving, unavailable
from tests.support.fake_teacher import TEACHERS, FakeTeacher
from tests.support.nano import make_nano
from tests.support.trajectories import trajectories
from tests.unit.train.update.test_updater import graded, gradient, updater

PATHS = {"vllm": "/v1/completions", "sglang": "/generate"}
ALONE = Runtime(torch.device("cpu"))


@pytest.fixture(scope="module")
def models():
    """A policy, a teacher of another size, and rollouts of the policy."""
    policy = make_nano(eos_bias=0)
    return policy, make_nano(seed=1, eos_bias=0, hidden_size=48, scale=6.0), graded(policy, num_prompts=3)


def served(url, kind="vllm", folder=None, capacity=1000, **changes):
    server = Server(url, **{"timeout_s": 5.0, "num_retries": 2, "first_pause_s": 0.01, "title": "teacher", **changes})
    log_probs = ServedLogProbs(server, SCORING[kind], "served", LogProbCache(capacity, folder), num_requests=3)
    return ServedTeacher(Distillation(), log_probs=log_probs)


def stepped(loaded, groups, teacher):
    one = updater(loaded, "reinforce")
    one.teacher = teacher
    report = one.run(one.make_batch(groups), 1, first_update=0, seed=0)
    return gradient(loaded), report


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_gradient_is_that_of_the_same_teacher_in_this_process(models, kind):
    policy, other, groups = models
    expected, here = stepped(policy, groups, ModelTeacher(Distillation(), policy=Policy(other, 1.0, True)))
    with serving(TEACHERS[kind](other)) as url:
        found, there = stepped(policy, groups, served(url, kind))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert there.means["teacher/kl"].value == pytest.approx(here.means["teacher/kl"].value, abs=1e-5)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_of_a_trajectory_only_sampled_tokens_are_read(models, kind):
    policy, other, _ = models
    groups = [
        dataclasses.replace(group, verdicts=(Verdict(1.0, True),) * len(group.completions))
        for group in trajectories(policy, num_prompts=2, group_size=2)
    ]
    expected, _ = stepped(policy, groups, ModelTeacher(Distillation(), policy=Policy(other, 1.0, True)))
    with serving(TEACHERS[kind](other)) as url:
        found, _ = stepped(policy, groups, served(url, kind))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_sequence_is_sent_once_even_by_a_process_that_was_killed_and_continued(models, tmp_path):
    policy, other, groups = models
    state = FakeTeacher(other)
    sequences = {(group.prompt.context_ids, one.token_ids) for group in groups for one in group.completions}
    with serving(state) as url:
        teacher = served(url, folder=tmp_path / "said")
        teacher.prepare(groups, ALONE)
        first = teacher.take_counts()
        expected, _ = stepped(policy, groups, teacher)
        rows = tmp_path / "said" / "rank-0.jsonl"
        rows.write_bytes(rows.read_bytes()[:-9])  # killed while it wrote the last one
        later = served(url, folder=tmp_path / "said")
        later.prepare(groups, ALONE)
        again, _ = stepped(policy, groups, later)
        counts = later.take_counts()
    assert state.num_scored == len(sequences) + 1
    assert first.tokens == sum(len(context) + len(ids) for context, ids in sequences)
    assert first.calls <= len(sequences)
    assert first.cached == 0
    assert (counts.calls, counts.cached) == (1, len(sequences) - 1)
    assert torch.equal(again, expected)


def test_only_the_last_sequences_are_kept(models, tmp_path):
    _, other, groups = models
    with serving(FakeTeacher(other)) as url:
        for _ in range(2):
            teacher = served(url, folder=tmp_path, capacity=3)
            teacher.prepare(groups, ALONE)
    kept = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert 3 <= len(kept) <= 6
    assert {path.name for path in tmp_path.iterdir()} == {"rank-0.jsonl", "rank-0.older.jsonl"}


def test_a_fault_that_passes_is_tried_again(models):
    _, other, groups = models
    state = FakeTeacher(other)
    state.faults[PATHS["vllm"]] = [unavailable] * 2
    with serving(state) as url:
        teacher = served(url)
        teacher.prepare(groups[:1], ALONE)
    assert state.calls[PATHS["vllm"]] == teacher.take_counts().calls + 2


def test_a_server_that_fails_is_one_sentence_and_what_it_said_before_is_kept(models, tmp_path):
    _, other, groups = models
    state = FakeTeacher(other)
    with serving(state) as url:
        teacher = served(url, folder=tmp_path, num_retries=0)
        teacher.prepare(groups[:1], ALONE)
        before = state.num_scored
        state.always[PATHS["vllm"]] = unavailable
        with pytest.raises(TeacherFailed, match=r"^teacher http.* failed 1 times, last: status 503.*continue the run$"):
            teacher.prepare(groups, ALONE)
        state.always.clear()
        served(url, folder=tmp_path).prepare(groups[:1], ALONE)
    assert state.num_scored == before


def last_said(content, kind, token, value):
    """Change what an answer says about the last token of its first sequence: the token, and its log-probability."""
    if kind == "vllm":
        content["choices"][0]["prompt_logprobs"][-1] = {str(token): {"logprob": value}}
    else:
        content[0]["meta_info"]["input_token_logprobs"][-1][:2] = [value, token]


def nothing_said(content, kind):
    if kind == "vllm":
        content["choices"][0]["prompt_logprobs"].clear()
    else:
        content[0]["meta_info"]["input_token_logprobs"].clear()


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content, kind: last_said(content, kind, 999_999, -1.0), "no log-probability for the token"),
        (lambda content, kind: last_said(content, kind, 0, 0.5), "log-probability"),
        (nothing_said, "0 log-probabilities"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused(models, kind, change, sentence):
    _, other, groups = models
    state = TEACHERS[kind](other)
    state.always[PATHS[kind]] = edits(lambda content: change(content, kind))
    with serving(state) as url, pytest.raises(TeacherFailed, match=sentence):
        served(url, kind).prepare(groups[:1], ALONE)


def two_ranks():
    """The runtimes of two ranks that are threads of this process."""
    both, values = threading.Barrier(2), [None, None]

    class Paired(Runtime):
        def gather(self, value):
            values[self.rank] = value
            both.wait(10)
            everyone = list(values)
            both.wait(10)
            return everyone

    return [Paired(torch.device("cpu"), rank, 2) for rank in range(2)]


def test_ranks_share_the_sequences_of_a_step_and_know_all_answers(models, tmp_path):
    _, other, groups = models
    state = FakeTeacher(other)
    with serving(state) as url, ThreadPoolExecutor(2) as pool:
        teachers = [served(url, folder=tmp_path) for _ in range(2)]
        ranks = two_ranks()
        list(pool.map(lambda teacher, rank: teacher.prepare(groups, rank), teachers, ranks))
        num_sent = state.num_scored
        for teacher in teachers:
            teacher.prepare(groups, ALONE)
        state.always[PATHS["vllm"]] = unavailable
        failing = [served(url, num_retries=0) for _ in range(2)]
        futures = [pool.submit(one.prepare, groups, rank) for one, rank in zip(failing, ranks, strict=True)]
        assert all(isinstance(future.exception(), TeacherFailed) for future in futures)
    assert state.num_scored == num_sent == sum(len(group.completions) for group in groups)


def test_another_temperature_is_refused(models):
    policy, other, groups = models
    one = updater(policy, "reinforce")
    one.policy.temperature = 0.7
    with serving(FakeTeacher(other)) as url:
        one.teacher = served(url)
        with pytest.raises(TeacherFailed, match=r"set rollout\.temperature = 1"):
            one.run(one.make_batch(groups), 1, first_update=0, seed=0)


def test_a_hint_is_sent_to_the_server_alone(models):
    policy, other, groups = models
    state = FakeTeacher(other)
    hint = (5, 6, 7)

    def hinted(prompt):
        return dataclasses.replace(prompt, token_ids=(*prompt.token_ids, *hint))

    with serving(state) as url:
        teacher = dataclasses.replace(served(url), hinted=hinted)
        teacher.prepare(groups[:1], ALONE)
        before = state.num_scored
        stepped(policy, groups[:1], teacher)
    assert state.num_scored == before, "the update reads what was prepared"
    context = (*groups[0].prompt.token_ids, *hint)
    assert all(tuple(ids[: len(context)]) == context for body in state.bodies for ids in body["prompt"])
