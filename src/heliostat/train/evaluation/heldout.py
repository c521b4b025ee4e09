"""A run's evaluations: held-out problems before, during and after training, written into its folder.

Left out: how success is measured (``evaluate``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.train.evaluation.evaluate import Evaluation, evaluate
from heliostat.train.evaluation.rows import eval_rows, evaluation_from_rows, recorded_evaluation, transcript_rows
from heliostat.train.run_context import RunContext
from heliostat.types import Group, Problem


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Evaluations of a run's held-out problems under the current weights, always with the same random streams.

    Attributes:
        before: rows of the evaluation before training.
        failures: how a verifier failed in the last whole evaluation of this process, in its words.
    """

    context: RunContext
    before: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """The held-out problems of the run."""
        return self.context.heldout_problems

    def evaluate_if_due(self, step: int) -> dict[str, float]:
        """Evaluate some problems after every ``eval.every`` steps; the last step has an evaluation of its own."""
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
        """Results before training, which began at ``step``: read back, or measured while the weights are those.

        Args:
            untrained: whether they are.

        Returns:
            ``None`` where they can no longer be known.
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
        """Results of the trained weights."""
        return self._stored("after", step, ()) or self._measure(step, "after")

    def state_dict(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps: the rows of the evaluation before training, once it was made."""
        return list(self.before)

    def load_state_dict(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue from a checkpoint; rows that ``evals.jsonl`` has lost since are put back."""
        self.before[:] = rows
        self.context.folder.restore_before(rows)

    def _stored(self, phase: str, step: int, rows: Sequence[dict[str, Any]]) -> Evaluation | None:
        """All problems' results of an earlier session, with the weights of ``step``."""
        stored = evaluation_from_rows(rows) if rows else recorded_evaluation(self.context.folder.evals, phase, step)
        return stored if stored is not None and len(stored.results) == len(self.problems) else None

    def _measure(self, step: int, phase: str) -> Evaluation:
        self.context.display.note(f"evaluating {phase} training on {len(self.problems)} held-out problems")
        evaluation, groups = self._evaluate(len(self.problems), self.context.recipe.eval.final_samples, greedy=True)
        self._record(step, phase, evaluation, groups)
        self.failures[:] = [verdict.failure for group in groups for verdict in group.verdicts if verdict.failure][:1]
        return evaluation

    def _evaluate(self, num_problems: int, num_samples: int, greedy: bool) -> tuple[Evaluation, list[Group]]:
        context = self.context
        prompts = [context.bundle.prompt(problem) for problem in self.problems[:num_problems]]
        settings = SamplingSettings(temperature=context.recipe.rollout.temperature)
        seed = completion_seed(context.recipe.run.seed, "evaluation")
        with context.ledger.phase("eval"):
            result = evaluate(
                context.bundle.engine,
                context.pool,
                prompts,
                num_samples,
                settings,
                context.runtime,
                seed=seed,
                greedy=greedy,
            )
        context.ledger.charge_sampling("eval", context.bundle.loaded, context.bundle.engine, context.runtime)
        return result

    def _record(self, step: int, phase: str, evaluation: Evaluation, groups: list[Group]) -> None:
        self.context.folder.append(self.context.folder.evals, eval_rows(step, phase, evaluation))
        shown = groups[: self.context.recipe.eval.num_transcripts]
        self.context.folder.append(self.context.folder.transcripts, transcript_rows(step, phase, shown))
