"""A run's evaluations: held-out problems before, during and after training, written into its folder.

Left out: how success is measured (``evaluate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.config import Recipe
from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.evaluation.evaluate import Evaluation, evaluate
from heliostat.train.evaluation.rows import eval_rows, evaluation_from_rows, recorded_evaluation, transcript_rows
from heliostat.train.model_bundle import Bench
from heliostat.train.run_folder.folder import RunFolder
from heliostat.types import Group, Problem


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out problems of a run; sampled with the weights of now, always with the same random streams.

    Attributes:
        note: shows a line to people.
        before: rows of the evaluation before training.
        failures: how a verifier failed in the last whole evaluation of this process, in its words.
    """

    recipe: Recipe
    folder: RunFolder
    bench: Bench
    pool: VerifierPool
    runtime: Runtime
    ledger: Ledger
    note: Callable[[str], None]
    problems: Sequence[Problem]
    before: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def look(self, step: int) -> dict[str, float]:
        """The periodic check on the first problems, for the log."""
        section = self.recipe.eval
        evaluation, groups = self._evaluate(section.num_problems, section.samples_per_problem, greedy=False)
        self._record(step, "during", evaluation, groups)
        return evaluation.metrics() | {"time/eval": self.ledger.last_seconds["eval"]}

    def measure_before(self, step: int, untrained: bool) -> Evaluation | None:
        """Results before training, which began at ``step``: read back, or measured while the weights are those.

        Args:
            untrained: whether they are.

        Returns:
            ``None`` where they can no longer be known.
        """
        stored = self._stored("before", step, self.before)
        if stored is None and not untrained:
            self.note(
                f"the evaluation before training is lost from {self.folder.evals}, and so are the weights of step "
                f"{step}: the run goes on without it"
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
        self.folder.restore_before(rows)

    def _stored(self, phase: str, step: int, rows: Sequence[dict[str, Any]]) -> Evaluation | None:
        """All problems' results of an earlier session, with the weights of ``step``."""
        stored = evaluation_from_rows(rows) if rows else recorded_evaluation(self.folder.evals, phase, step)
        return stored if stored is not None and len(stored.results) == len(self.problems) else None

    def _measure(self, step: int, phase: str) -> Evaluation:
        self.note(f"evaluating {phase} training on {len(self.problems)} held-out problems")
        evaluation, groups = self._evaluate(len(self.problems), self.recipe.eval.final_samples, greedy=True)
        self._record(step, phase, evaluation, groups)
        self.failures[:] = [verdict.failure for group in groups for verdict in group.verdicts if verdict.failure][:1]
        return evaluation

    def _evaluate(self, num_problems: int, num_samples: int, greedy: bool) -> tuple[Evaluation, list[Group]]:
        prompts = [self.bench.prompt(problem) for problem in self.problems[:num_problems]]
        settings = SamplingSettings(temperature=self.recipe.rollout.temperature)
        seed = completion_seed(self.recipe.run.seed, "evaluation")
        with self.ledger.phase("eval"):
            result = evaluate(
                self.bench.engine, self.pool, prompts, num_samples, settings, self.runtime, seed=seed, greedy=greedy
            )
        self.ledger.charge_sampling("eval", self.bench.loaded, self.bench.engine, self.runtime)
        return result

    def _record(self, step: int, phase: str, evaluation: Evaluation, groups: list[Group]) -> None:
        self.folder.append(self.folder.evals, eval_rows(step, phase, evaluation))
        shown = groups[: self.recipe.eval.num_transcripts]
        self.folder.append(self.folder.transcripts, transcript_rows(step, phase, shown))
