"""A teacher's term: the gradient of a dense computation, in every layout, beside a reward or alone."""

import copy
import dataclasses

import pytest
import torch

from heliostat.models import encode_problem
from heliostat.objectives.distillation import Distillation, sampled_reverse_kl
from heliostat.optim import RENG
from heliostat.train.logprobs import teacher as teacher_module
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.teacher import ModelTeacher
from heliostat.types import Problem, TrainingGroup
from tests.support.nano import make_nano
from tests.unit.train.update.test_updater import graded, gradient, updater, weights

KINDS = ("sampled", "reverse-kl", "forward-kl", "jsd")


@pytest.fixture(scope="module")
def models():
    """A policy, a teacher of another size, and rollouts of the policy."""
    policy = make_nano(eos_bias=0)
    return policy, make_nano(seed=1, eos_bias=0, hidden_size=48, scale=6.0), graded(policy, num_prompts=4)


def hinted(loaded):
    def of(prompt):
        problem = Problem("hinted", "sums", f"{prompt.problem.prompt} 7 7 7")
        return dataclasses.replace(prompt, token_ids=encode_problem(loaded, problem).token_ids)

    return of


def teacher_of(loaded, kind, alone=True, weight=1.0, shared_prompt=True, **more):
    distillation, policy = Distillation(kind=kind, weight=weight, beta=0.3), Policy(loaded, 1.0, shared_prompt)
    return ModelTeacher(distillation, alone, policy=policy, **more)


def stepped(loaded, groups, teacher, tokens=10_000, num_workers=1, num_updates=1, lr=0.0, **settings):
    """The gradient of an update, or of the last of several, and its report."""
    one = updater(loaded, "reinforce", tokens=tokens, lr=lr, **settings)
    one.teacher, one.workers = teacher, type(one.workers)(num_workers)
    report = one.run(one.make_batch(groups), num_updates, first_update=0, seed=0)
    return gradient(loaded), report


def dense(loaded, groups, other, kind, see=lambda prompt: prompt):
    """The same gradient with whole forwards of single texts."""
    loaded.model.zero_grad()
    measure, total = Distillation(kind=kind, beta=0.3), 0.0
    for group in groups:
        for completion in group.completions:
            logp = []
            for model, prompt in ((loaded, group.prompt), (other, see(group.prompt))):
                ids = torch.tensor([prompt.context_ids + completion.token_ids])
                logits = model.model(ids).logits[0, len(prompt.context_ids) - 1 : -1]
                logp.append(logits.log_softmax(-1))
            ours, theirs = logp[0], logp[1].detach()
            if kind == "sampled":
                at = torch.tensor(completion.token_ids)[:, None]
                picked = [each.gather(1, at).squeeze(1) for each in (ours, theirs)]
                total = total + sampled_reverse_kl(*picked, picked[0].detach()).sum()
            else:
                total = total + measure.of_logits(ours, theirs).sum()
    num = sum(len(group.completions) for group in groups)
    (total / num).backward()
    return gradient(loaded), float(total.detach())


def close(one, other):
    return float((one - other).norm() / other.norm()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_whole_forwards(models, kind, monkeypatch):
    policy, other, groups = models
    expected, total = dense(policy, groups, other, kind)
    found, report = stepped(policy, groups, teacher_of(other, kind))
    num_tokens = sum(group.num_tokens for group in groups)
    assert close(found, expected)
    assert report.means["teacher/distance"].value == pytest.approx(total / num_tokens, rel=1e-4)
    assert report.taught.rows == 16
    assert report.counts.dropped_groups == 0, "a group without a reward signal is still taught"
    small = teacher_of(other, kind, shared_prompt=False)
    assert close(stepped(policy, groups, small, tokens=1)[0], expected)
    vocab = policy.model.config.vocab_size
    monkeypatch.setattr(teacher_module, "MAX_LOGITS", 3 * teacher_module.NUM_COPIES * vocab)  # three tokens a chunk
    assert close(stepped(policy, groups, teacher_of(other, kind))[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_models_are_compared_in_float32(models, kind):
    """The distance from bfloat16 logits, not one rounded to bfloat16 on the way: that is off by 0.4%."""
    policy, other = copy.deepcopy(models[:2])
    for each in (policy, other):
        each.model.bfloat16()
    teacher, ours = teacher_of(other, kind), Policy(policy, 1.0, shared_prompt=False)
    rows = rows_of([TrainingGroup(group, torch.ones(len(group.completions))) for group in models[2][:1]])
    read = teacher.read_rows(rows).detach()
    taught = torch.split(read, [row.num_tokens for row in rows])
    lesson = teacher.lesson(ours, [dataclasses.replace(row, taught=one) for row, one in zip(rows, taught, strict=True)])
    assert {each.dtype for each in lesson} == {torch.float32}
    if kind != "sampled":
        logp = [
            head.logits(hidden).float().log_softmax(-1)
            for head, hidden in ((policy.head, ours.hidden(rows)), (other.head, read))
        ]
        torch.testing.assert_close(lesson.distance, teacher.distillation.of_logits(*logp), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_its_teacher_learns_nothing(models, kind):
    policy, other, groups = models
    large = float(stepped(policy, groups, teacher_of(other, kind))[0].norm())
    found, report = stepped(policy, groups, teacher_of(policy, kind))
    assert float(found.norm()) < 1e-4 * large
    assert abs(report.means["teacher/kl"].value) < 1e-5


@pytest.mark.parametrize("kind", ["sampled", "jsd"])
def test_a_teacher_with_a_hint_sees_another_prompt_and_the_same_completion(models, kind):
    policy, _, groups = models
    expected, _ = dense(policy, groups, policy, kind, hinted(policy))
    found, _ = stepped(policy, groups, teacher_of(policy, kind, hinted=hinted(policy)))
    assert close(found, expected)


def test_beside_a_reward_the_gradients_add_up(models):
    policy, other, groups = models
    rewards, _ = stepped(policy, groups, None)
    taught, _ = stepped(policy, groups, teacher_of(other, "reverse-kl"))
    both, report = stepped(policy, groups, teacher_of(other, "reverse-kl", alone=False, weight=0.3))
    assert close(both, rewards + 0.3 * taught)
    assert report.means["teacher/kl"].count > 0


@pytest.mark.parametrize("kind", ["sampled", "jsd"])
def test_workers_and_later_updates_change_no_bit(models, kind):
    _, other, groups = models
    runs = []
    for num_workers in (1, 2):
        policy = make_nano(eos_bias=0)
        _, report = stepped(policy, groups, teacher_of(other, kind), 40, num_workers, num_updates=2, lr=0.1)
        runs.append((weights(policy), report.means["teacher/kl"].value))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], weights(make_nano(eos_bias=0)))


def test_an_optimizer_that_evaluates_the_loss_again_evaluates_the_teachers(models):
    policy, other, groups = make_nano(eos_bias=0), *models[1:]
    one = updater(policy, "reinforce", optimizer=RENG(torch.optim.SGD(policy.model.parameters(), lr=1e-3), rho=0.5))
    one.teacher = teacher_of(other, "reverse-kl")
    report = one.run(one.make_batch(groups), 1, first_update=0, seed=0)
    assert report.counts.rows == 32, "once for the gradient, once more at other weights"
    assert report.bad_steps == 0


def test_the_objectives_length_normalization_weighs_the_teachers_term(models):
    policy, other, groups = models
    found, _ = stepped(policy, groups, teacher_of(other, "forward-kl"), length_normalization="token")
    tokens_per_completion = sum(group.num_tokens for group in groups) / 16
    assert close(found * tokens_per_completion, dense(policy, groups, other, "forward-kl")[0])
