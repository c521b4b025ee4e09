"""A run's evaluations on held-out problems before, during and after training, written into its folder.

Left out: the measurement of success (``evaluate``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from heliostat.models import decode, observation_text
from heliostat.train.evaluation.charged import evaluate_charged
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.evaluation.rows import eval_rows, evaluation_from_rows, recorded_evaluation, transcript_rows
from heliostat.train.run_context import RunContext
from heliostat.types import Group, Problem


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Evaluations of a run's held-out problems with the current weights, always with the same random streams.

    Attributes:
        before: rows of the evaluation before training.
        failures: error message of the first failed verdict in this process's last full evaluation, if any.
    """

    context: RunContext
    before: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """The held-out problems of the run."""
        return self.context.heldout_problems

    def evaluate_if_due(self, step: int) -> dict[str, float]:
        """Evaluate some problems after every ``eval.every`` steps; the last step has its own evaluation."""
        every = self.context.recipe.eval.every
        due = every and step % every == 0 and step < self.context.recipe.train.num_steps
        return self.evaluate_subset(step) if due else {}

    def evaluate_subset(self, step: int) -> dict[str, float]:
        """Evaluate the first ``eval.num_problems`` problems, and return the metrics."""
        section = self.context.recipe.eval
        evaluation, groups = self._evaluate(section.num_problems, section.samples_per_problem, greedy=False)
        self._record(step, "during", evaluation, groups)
        return evaluation.metrics() | {"time/eval": self.context.ledger.last_seconds["eval"]}

    def measure_before(self, step: int, untrained: bool) -> Evaluation | None:
        """Read the evaluation before training, which began at ``step``, or run it if the weights are still untrained.

        Args:
            untrained: whether the weights are those of ``step``.

        Returns:
            The evaluation; ``None`` where it is lost and the weights are trained.
        """
        stored = self._stored("before", step, self.before)
        if stored is None and not untrained:
            self.context.display.note(
                f"the evaluation before training is lost from {self.context.folder.evals}, and so are the weights "
                f"of step {step}: the run goes on without it"
            )
            return None
        evaluation = stored or self._measure(step, "before")
        self.before[:] = eval_rows(step, "before", evaluation)
        return evaluation

    def measure_after(self, step: int) -> Evaluation:
        """Read the evaluation after training, or run it with the trained weights."""
        return self._stored("after", step, ()) or self._measure(step, "after")

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the rows of the evaluation before training, for a checkpoint; empty before it ran."""
        return list(self.before)

    def load_state_dict(self, rows: Sequence[dict[str, Any]]) -> None:
        """Restore the rows of a checkpoint, also in ``evals.jsonl`` where they are missing."""
        self.before[:] = rows
        self.context.folder.restore_before(rows)

    def _stored(self, phase: str, step: int, rows: Sequence[dict[str, Any]]) -> Evaluation | None:
        """Read a complete evaluation of an earlier session with the weights of ``step``."""
        stored = evaluation_from_rows(rows) if rows else recorded_evaluation(self.context.folder.evals, phase, step)
        return stored if stored is not None and len(stored.results) == len(self.problems) else None

    def _measure(self, step: int, phase: str) -> Evaluation:
        self.context.display.note(f"evaluating {phase} training on {len(self.problems)} held-out problems")
        evaluation, groups = self._evaluate(len(self.problems), self.context.recipe.eval.final_samples, greedy=True)
        self._record(step, phase, evaluation, groups)
        self.failures[:] = [verdict.failure for group in groups for verdict in group.verdicts if verdict.failure][:1]
        return evaluation

    def _evaluate(self, num_problems: int, num_samples: int, greedy: bool) -> tuple[Evaluation, list[Group]]:
        context, problems = self.context, self.problems[:num_problems]
        return evaluate_charged(
            context.bundle, context.pool, context.runtime, context.ledger, problems, num_samples, greedy=greedy
        )

    def _record(self, step: int, phase: str, evaluation: Evaluation, groups: list[Group]) -> None:
        self.context.folder.append(self.context.folder.evals, eval_rows(step, phase, evaluation))
        shown = groups[: self.context.recipe.eval.num_transcripts]
        loaded = self.context.bundle.loaded
        rows = transcript_rows(step, phase, shown, partial(decode, loaded), partial(observation_text, loaded))
        self.context.folder.append(self.context.folder.transcripts, rows)
