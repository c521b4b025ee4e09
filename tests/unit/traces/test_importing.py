"""Imports find the problem, encode texts once, judge every reward again, and name the row they refuse."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.models import encode_problem
from heliostat.traces import Bank, ImportReport, Problems, RowIssues, import_rows, read_rows, reverify
from heliostat.traces.columns import to_columns
from heliostat.traces.files import TraceRow
from heliostat.traces.fingerprint import policy_fingerprint
from heliostat.traces.record import Trace, TraceSource
from heliostat.types import Problem, Verdict

ANSWERS = {"sums/a": ("1 + 2 =", "3"), "sums/b": ("2 + 2 =", "4"), "sums/c": ("1 + 2 = 3 ; 4 + 4 =", "8")}


def judge(groups):
    """Right where the text ends in the answer."""
    judged = []
    for group in groups:
        right = [one.text.endswith(str(group.prompt.problem.answer)) for one in group.completions]
        judged.append(replace(group, verdicts=tuple(Verdict(float(ok), ok) for ok in right)))
    return judged


@pytest.fixture
def problems(nano):
    known = [Problem(name, "sums", question, answer=answer) for name, (question, answer) in ANSWERS.items()]
    return Problems(known, nano, lambda problem: encode_problem(nano, problem), judge, "ends-in")


def run(tmp_path, rows, problems):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ImportReport()
    with Bank.open(tmp_path / "traces.bank") as bank:
        import_rows(bank, read_rows(str(path), report.issues), report, problems)
        return list(bank), report


@pytest.mark.slow
def test_texts_of_other_programs_become_ids_and_are_judged(tmp_path, problems, nano):
    rows = [
        {"input": "1 + 2 =", "output": "it is 3", "score": 0.0, "step": 4},  # claimed wrong, is right
        {"prompt": " 2 +  2 = ", "completion": "5", "reward": 1.0},  # claimed right, is wrong
        {"prompt": "<user>1 + 2 = 3 ; 4 + 4 =<assistant>", "completion": "8"},  # rendered; the longest question counts
    ]
    traces, report = run(tmp_path, rows, problems)
    assert [trace.problem_id for trace in traces] == ["sums/a", "sums/b", "sums/c"]
    assert [trace.reward for trace in traces] == [1.0, 0.0, 1.0]
    assert (report.num_rejudged, report.num_reencoded, report.issues.num_issues) == (2, 3, 0)
    first = traces[0]
    assert first.completion_ids == (*nano.tokenizer.encode("it is 3", add_special_tokens=False), nano.eos_id)
    assert first.prompt_ids == encode_problem(nano, Problem("x", "sums", "1 + 2 =")).token_ids
    assert first.source.reencoded
    assert (first.source.verifier, first.source.step) == ("ends-in", 4)


def test_copies_are_passed_over(tmp_path, problems):
    rows = [{"prompt": "1 + 2 =", "completion": "3"}] * 3
    traces, report = run(tmp_path, rows, problems)
    assert (len(traces), report.appended.num_known) == (1, 2)


def test_rows_that_cannot_be_used_are_named_and_the_rest_is_imported(tmp_path, problems):
    rows = [
        {"prompt": "9 + 9 =", "completion": "18"},
        {"prompt": "1 + 2 =", "completion": "3", "reward": float("nan")},
        {"prompt": "1 + 2 =", "completion": ""},
        {"something": "else"},
        {"prompt": "1 + 2 =", "completion": "3"},
    ]
    traces, report = run(tmp_path, rows, problems)
    assert len(traces) == 1
    assert [problem.split(":")[0] for problem in report.issues.messages] == [
        f"rows.jsonl, row {n}" for n in range(1, 5)
    ]
    assert "unknown problem" in report.issues.messages[0]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-3, 2**40), st.text(max_size=2), st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["role", "content"]), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_row_holds_it_is_stored_or_named(data, tmp_path, problems):
    """Rows with wrong types, negative ids, NaN rewards: each is a stored trace, a copy, or a finding at its place."""
    text_row = {"prompt": "1 + 2 =", "completion": "3", "reward": 1.0, "step": 1, "problem_id": "sums/a"}
    good = data.draw(st.sampled_from([text_row, own_row(problems)]))
    broken = data.draw(st.dictionaries(st.sampled_from(sorted(good)), JUNK, min_size=1, max_size=3))
    report = ImportReport()
    rows = [
        TraceRow("rows.jsonl, row 1", {**good, **broken}),
        TraceRow("rows.jsonl, row 2", {"prompt": "2 + 2 =", "completion": "4"}),
    ]
    with Bank.open(tmp_path / "any.bank") as bank:
        import_rows(bank, rows, report, problems)
    done = report.appended
    assert done.num_new + done.num_known + report.issues.num_issues == 2
    assert all(problem.startswith("rows.jsonl, row 1") for problem in report.issues.messages)


@pytest.mark.parametrize("row", [{"prompt": "1 + 2 =", "completion": "3", "step": 2**63}, {"seed": 2**63}])
def test_whole_numbers_that_no_database_holds_are_named(row, tmp_path, problems):
    """They would end the import in the middle of a batch."""
    report = ImportReport()
    given = row if "prompt" in row else {**own_row(problems), **row}
    with Bank.open(tmp_path / "any.bank") as bank:
        import_rows(bank, [TraceRow("rows.jsonl, row 1", given)], report, problems)
    (message,) = report.issues.messages
    assert "2^63 - 1" in message
    with pytest.raises(ValueError, match="seed from 0 to 2"):
        replace(Trace("a", "t", (1,), (2,), 0.0, False, TraceSource("x")), seed=2**63)
    with pytest.raises(ValueError, match="step and max_new_tokens from 0 to 2"):
        TraceSource("x", max_new_tokens=2**63)


def own_row(problems, **changes):
    source = TraceSource(problems.tokenizer, policy="w", run="r", step=2, verifier="claimed")
    trace = Trace("sums/a", "sums", (1, 2), (3, 4), 0.0, False, source, text="so 3", seed=5)
    return to_columns(replace(trace, **changes))


def test_ids_of_this_tokenizer_stay_and_others_are_encoded_again(tmp_path, problems, nano):
    foreign = TraceSource("another tokenizer", policy="w", verifier="claimed")
    rows = [
        own_row(problems),
        own_row(problems, source=foreign, seed=6),
        own_row(problems, source=foreign, text="", seed=7),
        own_row(problems, problem_id="sums/nowhere"),
    ]
    traces, report = run(tmp_path, rows, problems)
    kept, encoded = traces
    assert (kept.prompt_ids, kept.completion_ids, kept.source.reencoded) == ((1, 2), (3, 4), False)
    assert (kept.reward, kept.source.verifier, kept.source.run) == (1.0, "ends-in", "r")
    assert encoded.source.tokenizer == problems.tokenizer
    assert encoded.source.reencoded
    assert encoded.source.policy == "w"
    assert nano.tokenizer.decode(list(encoded.completion_ids), skip_special_tokens=True) == "so 3"
    assert "no text to encode" in report.issues.messages[0]
    assert "unknown problem" in report.issues.messages[1]


def test_without_problems_rows_of_ours_are_taken_as_they_stand(tmp_path, problems):
    rows = [own_row(problems, reward=0.25), {"prompt": "1 + 2 =", "completion": "3"}]
    traces, report = run(tmp_path, rows, None)
    assert traces[0].reward == 0.25
    assert "--recipe" in report.issues.messages[0]


def test_stored_rewards_are_judged_again(tmp_path, problems):
    run(tmp_path, [own_row(problems, seed=1), own_row(problems, text="so 4", seed=2)], None)
    issues = RowIssues()
    with Bank.open(tmp_path / "traces.bank") as bank:
        counts = reverify(bank, problems, issues)
    assert counts == {"judged": 2, "unknown": 0}
    assert issues.messages == ["problem sums/a: stored reward 0, judged again 1"]


def test_fingerprints_tell_tokenizers_and_weights_apart(nano, problems):
    import torch

    from tests.support.nano import make_nano

    assert policy_fingerprint(nano) == policy_fingerprint(make_nano())
    before = policy_fingerprint(nano)
    with torch.no_grad():
        for parameter in nano.model.parameters():
            parameter.add_(1e-3)
    assert policy_fingerprint(nano) != before
    assert len(problems.tokenizer) == 16
