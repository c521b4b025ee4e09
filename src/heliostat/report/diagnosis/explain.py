"""The diagnosis of a run from its folder alone: the guard's rules read its log again, in order of onset.

A run that never heard of the guard can be diagnosed as well, and so can any JSONL file of metrics (rows with ``step``)
or of transcripts (rows with a text). Numbers are compared with the run's own early level, so nothing needs to be known
about the model.

Left out: causes that leave no trace in the log. The first finding is the first suspect, not a proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.arguments import PathArg, as_path
from heliostat.monitors.foreign import METRIC_OF
from heliostat.monitors.guard import ABSOLUTE_STATISTIC, Finding
from heliostat.report.diagnosis.replay import replay, replay_run, training_rows, translated
from heliostat.report.diagnosis.stories import story_of
from heliostat.report.diagnosis.texts import TextReport, examine_texts
from heliostat.report.runs.read import Run, finite, read_run
from heliostat.storage import read_rows


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings about a run, in order of onset.

    Attributes:
        findings: alarms in order of onset.
        events: actions of the run's own guard while it ran.
        facts: one sentence each, about the whole run.
        texts: measures of the kept transcripts, where there are any.
        failure: the reason, where the run failed.
    """

    source: str
    findings: tuple[Finding, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    facts: tuple[str, ...] = ()
    texts: TextReport | None = None
    notes: tuple[str, ...] = field(default=())
    failure: str = ""

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return (
            not self.findings and not self.rollbacks and not self.failure and not (self.texts and self.texts.complaints)
        )

    @property
    def rollbacks(self) -> list[Mapping[str, Any]]:
        """Events in which the run's own guard rolled back to a checkpoint; their steps are in ``abandoned.jsonl``."""
        return [event for event in self.events if event.get("action") == "went back"]

    @property
    def _acts(self) -> list[str]:
        """The guard's actions; findings that it only reported are listed elsewhere."""
        said = [event for event in self.events if event.get("statistic_name") != ABSOLUTE_STATISTIC]
        return [str(event.get("text", "")) for event in said]

    @property
    def headline(self) -> str:
        """The diagnosis in one or two sentences."""
        if not self.findings and (back := self.rollbacks):
            cause = back[0].get("meaning", "")
            return (
                f"Its own guard took it back {len(back)} time{'s' * (len(back) > 1)}, the first time at step "
                f"{back[0].get('step')}: {cause}. What is left of the run shows nothing wrong."
            )
        if not self.findings and self.failure:
            return f"It failed: {self.failure}"
        if not self.findings:
            complaints = self.texts.complaints if self.texts else ()
            return complaints[0] if complaints else "No rule of the guard finds anything wrong."
        return story_of(self.findings[0])

    def format(self) -> str:
        """Return the whole diagnosis as plain text."""
        lines = [self.source, "", self.headline]
        lines += _listed("What happened, in order of onset:", [_told(finding) for finding in self.findings])
        lines += _listed("What could be done:", list(dict.fromkeys(finding.advice for finding in self.findings)))
        lines += _listed("What its own guard did:", self._acts)
        lines += _listed("In the texts:", [*(self.texts.complaints if self.texts else ())])
        lines += _listed("The run as a whole:", [*self.facts, *(self.texts.facts if self.texts else ())])
        lines += _listed("Could not be read:", list(self.notes))
        return "\n".join(lines)


def diagnose(path: PathArg) -> Diagnosis:
    """Explain a run folder, or a JSONL file of metrics or transcripts.

    Raises:
        ValueError: there is no such folder or file, or nothing in it can be read.
    """
    path = as_path(path)
    if path.is_dir():
        return diagnose_run(read_run(path))
    if not path.is_file():
        raise ValueError(f"there is no run folder or file {path} to diagnose")
    rows = read_rows(path).rows
    if not rows:
        raise ValueError(f"{path} has no JSON objects, one a line, to diagnose")
    if all("step" in row for row in rows) and any(_is_metrics(row) for row in rows):
        metrics = training_rows(
            [translated({key: finite(value) for key, value in row.items()}) for row in rows if _is_metrics(row)]
        )
        return Diagnosis(str(path), tuple(replay(metrics)), facts=tuple(_facts(metrics)))
    return Diagnosis(str(path), texts=examine_texts(rows))


def diagnose_run(run: Run) -> Diagnosis:
    """Explain a run that has been read."""
    reason = run.summary.get("reason")
    ending = [f"It ended as {run.status}{f': {reason}' if reason else ''}."]
    last = max((row.step for row in run.transcripts), default=0)
    latest = [row for row in run.transcripts if row.step == last]
    texts = [{"prompt": row.prompt, "completion": row.completion} for row in latest]
    return Diagnosis(
        run.label,
        tuple(replay_run(run)),
        tuple(run.events),
        (*ending, *_facts(training_rows(run.metrics))),
        examine_texts(texts) if texts else None,
        run.notes,
        str(reason or "no reason was kept") if run.status == "failed" else "",
    )


def _facts(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Say where reward, entropy and length began, peaked and ended."""
    facts = [f"{len(rows)} steps are in the log."] if rows else []
    for key, name in (("reward/mean", "Reward"), ("policy/entropy", "Entropy"), ("length/mean", "Length")):
        points = [(int(row["step"] or 0), value) for row in rows if (value := row.get(key)) is not None]
        if len(points) >= 10:
            tenth = max(1, len(points) // 10)
            first, last = (sum(v for _, v in part) / tenth for part in (points[:tenth], points[-tenth:]))
            step, best = max(points, key=lambda point: point[1])
            is_same = f"{first:.3g}" == f"{last:.3g}"
            went = f"stayed at {last:.3g}" if is_same else f"went from {first:.3g} to {last:.3g}"
            facts.append(f"{name} {went}, with its maximum {best:.3g} at step {step}.")
    return facts


def _told(finding: Finding) -> str:
    began = f" (began about step {finding.onset})" if finding.onset < finding.step else ""
    return f"{finding.sentence()}{began}"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  - {line}" for line in lines if line)] if lines else []


def _is_metrics(row: Mapping[str, Any]) -> bool:
    return any("/" in key or key in METRIC_OF for key in row)
