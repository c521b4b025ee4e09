"""A run's evaluations: held-out problems before, during and after training, written into its folder.

Left out: how success is measured (``train.evaluate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.config import Recipe
from heliostat.rollout import SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.train.evaluate import Evaluation, evaluate
from heliostat.train.folder import RunFolder
from heliostat.train.ledger import Ledger
from heliostat.train.records import eval_rows, transcript_rows
from heliostat.train.runtime import Runtime
from heliostat.train.setup import Bench
from heliostat.types import Group, Problem


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out problems of a run; sampled with the weights of now, always with the same random streams.

    Attributes:
        note: shows a line to people.
    """

    recipe: Recipe
    folder: RunFolder
    bench: Bench
    pool: VerifierPool
    runtime: Runtime
    ledger: Ledger
    note: Callable[[str], None]
    problems: Sequence[Problem]

    def look(self, step: int) -> dict[str, float]:
        """The periodic check on the first problems, for the log."""
        section = self.recipe.eval
        evaluation, groups = self._evaluate(section.num_problems, section.samples_per_problem, greedy=False)
        self._record(step, "during", evaluation, groups)
        return evaluation.metrics() | {"time/eval": self.ledger.last_seconds["eval"]}

    def measure(self, step: int, phase: str) -> Evaluation:
        """All problems, several samples each; results of an earlier session are read back, not repeated."""
        stored = self.folder.recorded(phase)
        if stored is not None and len(stored.results) == len(self.problems):
            return stored
        self.note(f"evaluating {phase} training on {len(self.problems)} held-out problems")
        evaluation, groups = self._evaluate(len(self.problems), self.recipe.eval.final_samples, greedy=True)
        self._record(step, phase, evaluation, groups)
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
