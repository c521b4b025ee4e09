"""Exact counts of the rows and tokens that forward passes ran over, for the FLOP ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row


@dataclass(slots=True)
class UpdateCounts:
    """Rows and tokens that forward passes ran over: exact, so that the ledger and the tests can rely on them.

    Attributes:
        completion_tokens: tokens after the prompts, of environments too.
        unshared_tokens, unshared_attended: the counts of prompts if every row had run its own.
        unscored_tokens: tokens of environments, which are run through the model and get no logits.
    """

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_attended: int = 0
    completion_attended: int = 0
    dropped_groups: int = 0
    unshared_tokens: int = 0
    unshared_attended: int = 0
    unscored_tokens: int = 0

    def over_ranks(self, runtime: Runtime) -> UpdateCounts:
        """Sum the counts of all ranks; all ranks drop the same groups."""
        total = runtime.sum(dataclasses.asdict(self))
        return UpdateCounts(**{k: int(v) for k, v in total.items()} | {"dropped_groups": self.dropped_groups})

    def add(self, part: Sequence[Row], shared_prompt: bool) -> None:
        """Count one forward over ``part``."""
        contexts = [row.context_length for row in part]
        self.unshared_tokens += sum(contexts)
        self.unshared_attended += sum(length * (length + 1) // 2 for length in contexts)
        if shared_prompt:
            contexts = list({row.group: row.context_length for row in part}.values())
        self.rows += len(part)
        self.prompt_tokens += sum(contexts)
        self.prompt_attended += sum(length * (length + 1) // 2 for length in contexts)
        self.completion_tokens += sum(row.length for row in part)
        self.unscored_tokens += sum(row.length - row.num_tokens for row in part)
        self.completion_attended += sum(row.length * row.context_length + row.length**2 // 2 for row in part)
