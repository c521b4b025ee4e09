"""Progress of a run: its step, and the tokens, seconds and skipped steps so far.

Left out: FLOPs (``flop_ledger``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RunCounters:
    """Counters that a run keeps from step to step, and across its sessions.

    Attributes:
        step: the last complete step; steps of a warm start of ``n`` steps are ``1 - n .. 0``.
        num_tokens: tokens sampled for training, those of rolled-back steps included.
        teacher_tokens: tokens that a teacher on a server has read.
        num_bad_steps: optimizer steps that were skipped because a loss or gradient was not finite.
        seconds_before: wall seconds of earlier sessions.
        began: when this session began, on the monotonic clock.
    """

    step: int = 0
    num_tokens: int = 0
    teacher_tokens: int = 0
    num_bad_steps: int = 0
    seconds_before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of the run so far, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.began
