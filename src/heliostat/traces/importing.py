"""Import traces from files into a bank: match problems, encode texts, judge rewards again, skip duplicates.

    row -> (our columns | another program's text) -> problem -> ids -> verdict -> trace

A row that cannot be used is reported with its place and reason; the import goes on. With ``Problems``,
the task's verifiers judge every row again, and the file's rewards are only compared. Without, rows in our own columns
are stored unchanged.

Left out: reading files (``files``), loading tasks and models (``api``), and replaying trajectories: the rewards that an
environment gave to their turns are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from heliostat.cards import Card
from heliostat.models import LoadedModel, encode_solution
from heliostat.traces.bank import Appended, Bank
from heliostat.traces.columns import from_columns
from heliostat.traces.dialects import TextRow, is_own, read_text_row
from heliostat.traces.files import TraceRow
from heliostat.traces.fingerprint import tokenizer_fingerprint
from heliostat.traces.record import Trace, TraceSource
from heliostat.traces.row_issues import RowIssues
from heliostat.types import Completion, Group, Problem, Prompt, StopReason

T = TypeVar("T")
_AT_ONCE = 500

Judge = Callable[[Sequence[Group]], list[Group]]


@dataclass(slots=True, repr=False)
class ImportReport(Card):
    """The result of an import.

    Attributes:
        appended: traces stored, and copies passed over.
        num_reencoded: of the stored ones and copies, those whose ids were made from text.
        num_rejudged: traces whose verdict differs from the file's.
        issues: rows and files that were skipped, with their places.
    """

    appended: Appended = field(default_factory=Appended)
    num_reencoded: int = 0
    num_rejudged: int = 0
    issues: RowIssues = field(default_factory=RowIssues)


class Problems:
    """A task's problems, found by id or by question, with the model and verifiers that traces need.

    Args:
        encode: a problem as the model's prompt.
        judge: groups with their verdicts, in the same order.
        verifier: name of the verifiers in the bank.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        loaded: LoadedModel,
        encode: Callable[[Problem], Prompt],
        judge: Judge,
        verifier: str,
    ) -> None:
        self.loaded = loaded
        self.judge = judge
        self.verifier = verifier
        self.tokenizer = tokenizer_fingerprint(loaded)
        self._encode = encode
        self._by_id = {problem.problem_id: problem for problem in problems}
        self._by_question = {_key(problem.question): problem for problem in self._by_id.values()}
        self._prompts: dict[str, Prompt] = {}

    def find(self, problem_id: str, question: str) -> Problem:
        """Return the problem of that id, else the one with this question, else one whose question the text contains.

        Raises:
            ValueError: there is none.
        """
        key = _key(question)
        found = self._by_id.get(problem_id) or self._by_question.get(key)
        if found is None and key:
            contained = [known for known in self._by_question if known in key]
            found = self._by_question[max(contained, key=len)] if contained else None
        if found is None:
            raise ValueError(f"unknown problem {problem_id or question!r:.80}; it is not among the recipe's problems")
        return found

    def prompt(self, problem: Problem) -> Prompt:
        """Return the problem in the model's ids, encoded once."""
        if problem.problem_id not in self._prompts:
            self._prompts[problem.problem_id] = self._encode(problem)
        return self._prompts[problem.problem_id]


def import_rows(bank: Bank, rows: Iterable[TraceRow], report: ImportReport, problems: Problems | None = None) -> None:
    """Store the traces of rows, and count the outcomes in ``report``."""
    for part in _parts(_traces(rows, report, problems)):
        claimed = [claim for _, claim in part]
        traces = [trace for trace, _ in part]
        if problems is not None:
            traces = _judged(traces, claimed, problems, report)
        report.num_reencoded += sum(trace.source.reencoded for trace in traces)
        report.appended += bank.append(traces)


def _traces(
    rows: Iterable[TraceRow], report: ImportReport, problems: Problems | None
) -> Iterator[tuple[Trace, float | None]]:
    """Yield each usable row as a trace to judge, with the reward that the file claims."""
    for place, columns in rows:
        try:
            if is_own(columns):
                trace = from_columns(columns)
                yield (trace if problems is None else _own(trace, problems)), trace.reward
            elif problems is None:
                raise ValueError("a row of text needs problems to belong to and a tokenizer; name a --recipe")
            else:
                row = read_text_row(columns)
                yield _from_text(row, problems), row.reward
        except ValueError as error:
            report.issues.report(place, str(error))


def _own(trace: Trace, problems: Problems) -> Trace:
    """Convert a trace in our columns to this model's ids: unchanged, or re-encoded from its text."""
    problem = problems.find(trace.problem_id, "")
    if trace.source.tokenizer == problems.tokenizer:
        return trace
    if trace.turns:
        raise ValueError("the ids of a trajectory are of another tokenizer, and only its last turn is stored as text")
    if not trace.text:
        raise ValueError("the ids are of another tokenizer and there is no text to encode again")
    row = TextRow("", trace.text, trace.problem_id, trace.reward, trace.source.run, trace.source.step)
    encoded = _from_text(row, problems)
    source = replace(encoded.source, policy=trace.source.policy, temperature=trace.source.temperature)
    return replace(encoded, problem_id=problem.problem_id, stop_reason=trace.stop_reason, source=source)


def _from_text(row: TextRow, problems: Problems) -> Trace:
    problem = problems.find(row.problem_id, row.question)
    prompt = problems.prompt(problem)
    source = TraceSource(problems.tokenizer, run=row.run, step=row.step, temperature=float("nan"), reencoded=True)
    return Trace(
        problem_id=problem.problem_id,
        task=problem.task,
        prompt_ids=prompt.token_ids,
        completion_ids=encode_solution(problems.loaded, prompt, row.completion),
        reward=0.0,
        success=False,
        text=row.completion,
        source=source,
    )


def _judged(
    traces: Sequence[Trace], claimed: Sequence[float | None], problems: Problems, report: ImportReport
) -> list[Trace]:
    groups = problems.judge([_group(trace, problems) for trace in traces])
    judged = []
    for trace, group, claim in zip(traces, groups, claimed, strict=True):
        verdict = group.verdicts[0]
        report.num_rejudged += claim is not None and claim != verdict.reward
        source = replace(trace.source, verifier=problems.verifier)
        judged.append(replace(trace, reward=verdict.reward, success=verdict.success, source=source))
    return judged


def _group(trace: Trace, problems: Problems) -> Group:
    nothing = np.zeros(trace.num_sampled, dtype=np.float32)
    completion = Completion(
        trace.completion_ids,
        nothing,
        nothing,
        StopReason(trace.stop_reason),
        trace.text,
        turns=trace.sampled_turns,
    )
    prompt = Prompt(problems.find(trace.problem_id, ""), trace.prompt_ids, prefix_turns=trace.given_turns)
    return Group(prompt, (completion,))


def reverify(traces: Iterable[Trace], problems: Problems, issues: RowIssues) -> Mapping[str, int]:
    """Judge stored traces again; those whose reward or success differs are reported.

    Returns:
        How many were judged, and how many belong to problems that the recipe does not have.
    """
    counts = {"judged": 0, "unknown": 0}
    for part in _parts(traces):
        known = []
        for trace in part:
            try:
                problems.find(trace.problem_id, "")
                known.append(trace)
            except ValueError:
                counts["unknown"] += 1
        groups = problems.judge([_group(trace, problems) for trace in known])
        for trace, group in zip(known, groups, strict=True):
            counts["judged"] += 1
            verdict = group.verdicts[0]
            if (verdict.reward, verdict.success) != (trace.reward, trace.success):
                issues.report(
                    f"problem {trace.problem_id}", f"stored reward {trace.reward:g}, judged again {verdict.reward:g}"
                )
    return counts


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield chunks of a few hundred, so that memory stays bounded."""
    iterator = iter(items)
    while part := list(islice(iterator, _AT_ONCE)):
        yield part


def _key(text: str) -> str:
    return " ".join(text.split())
