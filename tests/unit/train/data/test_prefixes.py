"""Prefixed training end to end: what is given, what is never given, what is scored, and what a resumed run repeats."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.config import ConfigError, load_recipe
from heliostat.models import decode, encode_problem
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.traces import Bank, ImportReport, import_rows
from heliostat.traces.cuts import Band, PrefixSource
from heliostat.traces.files import TraceRow
from heliostat.train import run_recipe
from heliostat.train.data.prefixes import PREFIX_MODES, Prefixes
from heliostat.train.data.problem_lookup import problems_of
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.trainer import Trainer
from heliostat.types import Completion, Cut, Group, Problem, Prompt, StopReason, TrainingGroup, Verdict
from tests.support import small
from tests.support.nano import make_nano

PREFIXED = """
[traces]
bank = "{bank}"

[prefix]
name = "band"
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A recipe with worked solutions, and a bank that has one of each."""
    folder = tmp_path_factory.mktemp("prefixes")
    rows = [
        {"prompt": f"{a} + {b} =", "answer": str(a + b), "work": f"{a}+{b}={a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = small.RECIPE.format(data=folder / "sums.jsonl").replace("num_steps = 60", "num_steps = 10")
    text = text.replace(
        'answer_column = "answer"', 'answer_column = "answer"\nsolution_column = "work"\nanswer_after = "="'
    )
    text = text.replace("max_new_tokens = 4", "max_new_tokens = 8").replace("num_steps = 8", "num_steps = 4")
    text += PREFIXED.format(bank=folder / "traces.bank")
    (folder / "prefixed.toml").write_text(text)
    recipe = load_recipe(str(folder / "prefixed.toml"), {"train.checkpoint_every": 2, "eval.every": 0})
    with problems_of(recipe) as problems, Bank.open(folder / "traces.bank") as bank:
        report = ImportReport()
        rows = [
            TraceRow(f"row {n}", {"prompt": row["prompt"], "completion": row["work"]}) for n, row in enumerate(rows)
        ]
        import_rows(bank, rows, report, problems)
        assert report.appended.num_new == 100
        assert {trace.success for trace in bank} == {True}
    return folder, recipe


class Stopped(BaseException):
    """Stands for the death of the process; nothing in the run catches it."""


@pytest.mark.slow
def test_a_run_with_prefixes_resumes_with_the_same_cuts_and_keeps_its_rollouts(prepared, tmp_path, monkeypatch):
    folder, recipe = prepared
    seen = []
    real = Trainer.step

    def step(self, number):
        if monkeypatch_stop and number == 4:
            raise Stopped
        values = real(self, number)
        seen.append((number, dict(values)))
        return values

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch_stop = False
    whole = run_recipe(recipe, tmp_path / "run")
    assert whole.status == "finished", whole.reason
    with Bank.open(folder / "traces.bank") as bank:
        logged = [trace for trace in bank if trace.source.run == "run"]
        stored = {trace.problem_id: trace for trace in bank if trace.source.run == ""}
    assert len(logged) == 4 * 8 * 4
    with_prefix = [trace for trace in logged if trace.prefix_ids]
    assert {trace.cut for trace in with_prefix} <= {f"prefix:{n}" for n in range(1, 5)}
    assert 0 < len(with_prefix) <= 0.75 * len(logged)
    for trace in with_prefix:
        solution = stored[trace.problem_id]
        assert solution.completion_ids[: len(trace.prefix_ids)] == trace.prefix_ids
        assert solution.text.partition("=")[0].startswith(decode(NANO, trace.prefix_ids).removesuffix("="))
    assert sum(trace.flops for trace in logged) == pytest.approx(seen[-1][1]["compute/rollout_flops"])
    assert all(0 < values["prefix/share"] <= 0.8 for _, values in seen)

    (tmp_path / "again").mkdir()
    other = tmp_path / "again" / "run"  # the same name, so that the bank knows these rollouts already
    monkeypatch_stop = True
    with pytest.raises(Stopped):
        run_recipe(recipe, other)
    monkeypatch_stop = False
    assert run_recipe(recipe, other).status == "finished"
    assert (other / "prefixes.json").read_bytes() == (tmp_path / "run" / "prefixes.json").read_bytes()
    assert small.metrics(other) == small.metrics(tmp_path / "run")
    with Bank.open(folder / "traces.bank") as bank:
        assert len([trace for trace in bank if trace.source.run == "run"]) == len(logged)


@pytest.mark.slow
def test_an_empty_bank_is_refused_with_the_way_out(prepared, tmp_path):
    _, recipe = prepared
    Bank.open(tmp_path / "empty.bank").close()
    changed = recipe.model_copy(
        update={"traces": recipe.traces.model_copy(update={"bank": str(tmp_path / "empty.bank")})}
    )
    with pytest.raises(ConfigError, match="heliostat sample"):
        run_recipe(changed, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"needs traces\.bank"):
        load_recipe("demo", {"prefix.name": "band"})


# -- what a prompt with a prefix is ----------------------------------------------------------------------------------

NANO = make_nano()


class ModelBundle:
    loaded = NANO

    def prompt(self, problem):
        return encode_problem(NANO, problem)


def prefixes(mode="prefix", leaks=lambda problem, text: False, **changes):
    problems = {f"p{n}": Problem(f"p{n}", "sums", f"{n} + 2 =", answer=str(n + 2)) for n in range(6)}
    words = {name: f"{name} goes on for quite a while" for name in problems}
    texts = {name: NANO.tokenizer.encode(text, add_special_tokens=False) for name, text in words.items()}
    donors = [PrefixSource(name, tuple(ids), len(ids)) for name, ids in texts.items()]
    fields = {"separator": "", "seed": 3, "per_step": 6, **changes}
    return Prefixes(ModelBundle(), problems, donors, Band(), PREFIX_MODES[mode], leaks=leaks, **fields)


def test_every_cut_comes_once_in_a_pass_and_again_after_a_restart():
    first = [prompt for step in range(3) for prompt in prefixes().next(step)]
    assert len({(prompt.problem.problem_id, prompt.prefix_ids) for prompt in first}) >= 12
    per_problem = {name: sum(p.problem.problem_id == name for p in first) for name in prefixes().problems}
    assert set(per_problem.values()) == {3}
    assert prefixes().next(2) == first[12:]
    assert prefixes(seed=4).next(2) != first[12:]
    assert all(prompt.cut == Cut("prefix", len(prompt.prefix_ids)) for prompt in first)


def test_a_cut_that_earns_the_reward_alone_is_refused():
    asked = []

    def leaks(problem, text):
        asked.append(text)
        return problem.problem_id == "p1"

    given_away = prefixes(leaks=leaks)
    prompts = [prompt for step in range(6) for prompt in given_away.next(step)]
    assert {bool(prompt.prefix_ids) for prompt in prompts if prompt.problem.problem_id == "p1"} == {False}
    assert all(prompt.prefix_ids for prompt in prompts if prompt.problem.problem_id != "p1")
    assert given_away.num_leaks == 6
    assert len(asked) == len(set(asked))


def test_a_hint_is_told_in_the_question_and_a_cut_can_wait_for_a_step():
    (prompt, *_) = prefixes("hint").next(0)
    assert prompt.prefix_ids == ()
    assert "A solution begins like this: p" in decode(NANO, prompt.token_ids)
    assert prompt.problem == prefixes().problems[prompt.problem.problem_id]
    words = prefixes(separator=" ").next(0)
    assert all(decode(NANO, prompt.prefix_ids).endswith(" ") for prompt in words if prompt.prefix_ids)


def test_success_is_told_apart():
    given_away = prefixes()
    done = [
        Group(prompt, (), (Verdict(1.0, index == 0), Verdict(0.0, False)))
        for index, prompt in enumerate([*given_away.next(0)[:2], ModelBundle().prompt(given_away.problems["p0"])])
    ]
    means = given_away.means(done)
    assert means["prefix/success"].value == 0.25
    assert means["prefix/success_without"].value == 0.0
    assert means["prefix/share"].count == 2


# -- what is scored --------------------------------------------------------------------------------------------------


def one_row(prefix, completion):
    problem = Problem("p", "sums", "1 + 2 =")
    prompt = replace(encode_problem(NANO, problem), prefix_ids=tuple(prefix), cut=Cut("x", 1))
    nothing = np.zeros(len(completion), dtype=np.float32)
    sampled = Completion(tuple(completion), nothing, nothing, StopReason.EOS, "")
    return rows_of([TrainingGroup(Group(prompt, (sampled,), (Verdict(1.0, True),)), torch.tensor([1.0]))])


TOKENS = st.lists(st.integers(5, 200), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(TOKENS, TOKENS, st.booleans())
def test_a_prefix_conditions_and_is_never_scored(prefix, completion, shared):
    """The axis of scored tokens has the completion only, and its log-probabilities are those of the whole sequence."""
    rows = one_row(prefix, completion)
    policy = Policy(NANO, temperature=1.0, shared_prompt=shared)
    logp = policy.log_probs(rows)
    assert logp.shape == (len(completion),)
    ids = torch.tensor([[*rows[0].prompt.token_ids, *prefix, *completion]])
    reference = torch.log_softmax(NANO.model(ids).logits[0], dim=-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
    assert torch.allclose(logp, reference[-len(completion) :], atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(TOKENS, TOKENS, st.booleans())
def test_no_prefix_token_is_pushed(prefix, completion, shared):
    """The logits at positions that predict a prefix token get no gradient: the loss is flat in them."""
    head_inputs = []
    hook = NANO.head.projection.register_forward_pre_hook(lambda module, args: head_inputs.append(args[0].shape))
    try:
        Policy(NANO, temperature=1.0, shared_prompt=shared).log_probs(one_row(prefix, completion)).sum().backward()
    finally:
        hook.remove()
        NANO.model.zero_grad(set_to_none=True)
    assert sum(int(np.prod(shape[:-1])) for shape in head_inputs) == len(completion)


def pushed(prompt, completions, advantages):
    """The gradient of REINFORCE's sum over tokens."""
    nothing = [np.zeros(len(ids), dtype=np.float32) for ids in completions]
    sampled = [Completion(ids, n, n, StopReason.EOS, "") for ids, n in zip(completions, nothing, strict=True)]
    group = Group(prompt, tuple(sampled), tuple(Verdict(0.0, False) for _ in sampled))
    logp = Policy(NANO, temperature=1.0, shared_prompt=True).log_probs(rows_of([TrainingGroup(group, advantages)]))
    weights = torch.repeat_interleave(advantages, torch.tensor([len(ids) for ids in completions]))
    parameters = [p for p in NANO.model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad((weights * logp).sum(), parameters)])


def test_a_prefix_trained_by_mistake_cancels_where_advantages_sum_to_zero():
    """All of a group share the prefix, so it is pushed by the sum of their advantages; any other sum pushes it."""
    bare = encode_problem(NANO, Problem("p", "sums", "1 + 2 ="))
    prefix, completions = (7, 9, 30), [(11, 2), (40, 41, 2), (12, 2)]
    whole = [prefix + ids for ids in completions]
    for advantages, same in ((torch.tensor([1.0, -0.75, -0.25]), True), (torch.tensor([1.0, 0.0, 0.0]), False)):
        masked = pushed(replace(bare, prefix_ids=prefix, cut=Cut("x", 1)), completions, advantages)
        assert torch.allclose(masked, pushed(bare, whole, advantages), atol=1e-5) == same


def test_verifiers_see_the_whole_turn_and_ids_are_never_tokenised_again(nano):
    given_ids = tuple(nano.tokenizer.encode("so 7", add_special_tokens=False))
    prompt = replace(encode_problem(nano, Problem("p", "sums", "1 + 2 =")), prefix_ids=given_ids, cut=Cut("prefix", 2))
    engine = TorchEngine(nano, DecodeLimits(6))
    (group,) = engine.sample(SampleRequest([prompt], 3, SamplingSettings(), seed=1, policy_step=0))
    assert isinstance(group.prompt, Prompt)
    for completion in group.completions:
        assert completion.text == decode(nano, (*given_ids, *completion.token_ids))
        assert completion.text.startswith("so 7")
        assert len(completion.token_ids) <= 6  # the prefix does not use up the completion's budget
    counts = engine.take_counts()
    assert counts.prompt_tokens == len(prompt.context_ids)  # once for the group
    assert counts.unshared_tokens == 3 * len(prompt.context_ids)
