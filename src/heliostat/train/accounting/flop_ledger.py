"""The FLOP ledger: FLOPs by phase, counted from exact token counts rather than estimated from time.

A forward pass over ``n`` tokens that attend to ``a`` positions in all costs ``forward_flops(n, a)``; training costs
three (one forward, two in the backward pass). Shared prompts are computed and counted once. ``unshared`` counts the
same work as if every completion computed its own prompt, as most papers do.

Left out: element-wise work (norms, activations, softmax, the optimizer), which is below a percent of a transformer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic

from heliostat.models import BACKWARD_COST, LoadedModel, forward_flops
from heliostat.rollout import Engine, RolloutCounts
from heliostat.tasks import VerifierPool
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.updater import UpdateReport

TIMED_PHASES = ("collection", "warm_start", "rollout", "update", "eval")
COMPUTE_PHASES = (*TIMED_PHASES, "teacher", "judge")
"""In this process, the time of a teacher and a judge is part of the update's and of verification's."""

PHASES = (*TIMED_PHASES, "verify", "teacher")


@dataclass(slots=True)
class Ledger:
    """Cumulative FLOPs and wall seconds by phase, and the seconds of each phase's last pass.

    Attributes:
        flops: as computed, shared prompts once.
        unshared: the same work without sharing; equal if nothing was shared.
    """

    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPUTE_PHASES, 0.0))
    unshared: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPUTE_PHASES, 0.0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    last_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the wall time inside to a phase."""
        started = monotonic()
        yield
        self.last_seconds[name] = monotonic() - started
        self.seconds[name] += self.last_seconds[name]

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark one training step; a ledger that profiles measures it in detail."""
        yield

    def charge_sampling(self, phase: str, loaded: LoadedModel, engine: Engine, runtime: Runtime) -> None:
        """Charge the sampling of all ranks since the last call; all ranks call this together."""
        total = runtime.sum(asdict(engine.take_counts()))
        self.charge_rollout(phase, loaded, RolloutCounts(**{key: int(value) for key, value in total.items()}))

    def charge_rollout(self, phase: str, loaded: LoadedModel, counts: RolloutCounts) -> None:
        """Charge the forward passes of sampling: prompts once per prefill, then one token per live
        row and step, and an environment's replies once each.
        """
        for book, prefills, prompt_tokens, prompt_attended in (
            (self.flops, counts.prefills, counts.prompt_tokens, counts.prompt_attended),
            (self.unshared, counts.unshared_prefills, counts.unshared_tokens, counts.unshared_attended),
        ):
            tokens = prompt_tokens + counts.decoded_rows + counts.reply_tokens
            attended = prompt_attended + counts.decoded_attended + counts.reply_attended
            num_logits = prefills + counts.decoded_rows + counts.replies
            book[phase] += forward_flops(loaded, tokens, attended / max(1, tokens), num_logits)

    def charge_update(self, phase: str, loaded: LoadedModel, counts: UpdateCounts, with_gradient: bool = True) -> None:
        """Charge the forward passes of training, and their backward passes if ``with_gradient``."""
        for book, prompt_tokens, prompt_attended in (
            (self.flops, counts.prompt_tokens, counts.prompt_attended),
            (self.unshared, counts.unshared_tokens, counts.unshared_attended),
        ):
            tokens = prompt_tokens + counts.completion_tokens
            attended = prompt_attended + counts.completion_attended
            num_logits = counts.completion_tokens - counts.unscored_tokens
            forward = forward_flops(loaded, tokens, attended / max(1, tokens), num_logits)
            book[phase] += (1 + BACKWARD_COST * with_gradient) * forward

    def charge_phase(self, loaded: LoadedModel, report: UpdateReport, teacher: LoadedModel | None = None) -> None:
        """Charge an update phase: its passes with gradients, those that only scored, and those of a teacher."""
        self.charge_update("update", loaded, report.counts)
        self.charge_update("update", loaded, report.scored, with_gradient=False)
        if teacher is not None:
            self.charge_update("teacher", teacher, report.taught, with_gradient=False)

    def charge_judge(self, phase: str, pool: VerifierPool, runtime: Runtime) -> None:
        """Charge the judging of all ranks since the last call; all ranks call this together."""
        if pool.judging is not None:
            self.charge(phase, pool.judging.take_counts(runtime.sum).flops)

    @property
    def times_spans(self) -> bool:
        """Whether spans of other threads are timed as well."""
        return False

    def record_async_sampling(self, seconds: float, spans: Mapping[str, float]) -> None:
        """Record sampling that ran in its own thread; only a ledger that profiles shows it.

        Args:
            seconds: wall seconds of that sampling.
            spans: seconds by span.
        """

    def charge(self, phase: str, flops: float) -> None:
        """Charge FLOPs that were counted elsewhere, like those of collecting traces."""
        self.flops[phase] += flops
        self.unshared[phase] += flops

    @property
    def spent(self) -> float:
        """FLOPs of all phases except evaluations, as computed."""
        return sum(flops for phase, flops in self.flops.items() if phase != "eval")

    @property
    def spent_unshared(self) -> float:
        """FLOPs of all phases except evaluations, without sharing."""
        return sum(flops for phase, flops in self.unshared.items() if phase != "eval")

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the totals for a checkpoint."""
        return {"flops": dict(self.flops), "unshared": dict(self.unshared), "seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Continue counting from a checkpoint."""
        none = dict.fromkeys(COMPUTE_PHASES, 0.0)  # a checkpoint of an earlier version may lack a phase
        self.flops = none | state["flops"]
        self.unshared = none | state["unshared"]
        self.seconds = dict.fromkeys(PHASES, 0.0) | state["seconds"]
