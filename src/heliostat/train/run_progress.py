"""Progress of a run through its steps: next step, save, resume, roll back.

Left out: the parts of a run's state (``builders``), and their order in a checkpoint (``run_state``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from heliostat.train.accounting.run_counters import RunCounters
from heliostat.train.console.interrupt import Interrupted
from heliostat.train.guard.run_guard import RunGuard
from heliostat.train.run_context import RunContext
from heliostat.train.run_state import RunState
from heliostat.train.update.updater import Updater


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """Steps and checkpoints of one run."""

    context: RunContext
    counters: RunCounters
    state: RunState
    guard: RunGuard
    updater: Updater

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of post-training."""
        return self.updater.safe_step.optimizer

    def steps(self) -> Iterator[int]:
        """Yield the next step until the last is complete; after a rollback, the step after its checkpoint."""
        while self.counters.step < self.context.recipe.train.num_steps:
            yield self.counters.step + 1

    def is_saved(self, step: int) -> bool:
        """Return whether ``step`` ends with a checkpoint."""
        train = self.context.recipe.train
        return step % train.checkpoint_every == 0 or step == train.num_steps

    def save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Write the checkpoint of the current step.

        Args:
            optimizer: the warm start's optimizer; ``None`` for that of post-training.
        """
        step = self.counters.step
        self.state.save(step, optimizer or self.optimizer, self.context.folder.extents(step))

    @contextmanager
    def saved_on_interrupt(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Save the last complete step when the user stops the run."""
        try:
            yield
        except Interrupted:
            self.save(optimizer)
            raise

    def resume(self) -> int | None:
        """Continue from the newest checkpoint; return its step, or ``None`` where there is none.

        A checkpoint inside the warm start (a step below 0) is left to ``WarmStart``, whose optimizer it holds.
        """
        step = self.context.checkpoints.latest
        if step is not None and step >= 0:
            self.restore(step, self.optimizer)
            self.context.display.note(f"resuming {self.context.folder.path} from step {step}")
        return step

    def restore(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Restore weights, optimizer and all parts of the state from the checkpoint of ``step``."""
        self.state.resume(step, optimizer)
        self.updater.lr_scale = self.guard.step_scale
        self.counters.step = step

    def roll_back(self, step: int) -> None:
        """Continue from an earlier checkpoint with other data and a lower learning rate, as the guard decided.

        Raises:
            GuardStopped: no rollback is left, or no checkpoint.
        """
        context = self.context
        target = self.guard.rollback_target(step, context.checkpoints.intact())
        self.state.roll_back(target, self.optimizer)
        self.guard.record_rollback(step, target, context.folder.metrics_after(target))
        self.updater.lr_scale = self.guard.step_scale
        self.counters.step = target
        self.save()  # a run killed before this line repeats the rollback, with all its files
        context.folder.forget_after(target)
        for tracker in context.trackers:
            tracker.rewind(target)
