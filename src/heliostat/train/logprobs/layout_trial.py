"""Trial of the layouts of rows: each is compared once per model with the model's own forward, before training.

A trial scores a few groups of mixed lengths and compares every log-probability with the model's own forward of each
text alone (``models.checks.reference_forward``), and its gradient (``gradient_trial``). Layouts that fail are not
used; if even padding is wrong, rows run one by one.

Left out: the choice of the cheapest layout for a batch (``policy``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heliostat.models import LoadedModel
from heliostat.models.checks.reference_forward import (
    comparison_mode,
    measure_tolerance,
    mixed_contexts,
    num_tried,
    reference_log_probs,
    short_error,
    unreached,
)
from heliostat.train.logprobs.gradient_trial import GradientTrial
from heliostat.train.logprobs.layouts import Alone, Cached, Layout, Plain, Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.packing import Row
from heliostat.types import Completion, Problem, Prompt, StopReason

MEMO = "exact layouts"
"""Key under which a loaded model caches the verdict, shared by its copies and its sharded form."""


@dataclass(frozen=True, slots=True)
class Exact:
    """The layouts that are exact for one model.

    Attributes:
        sharing: layouts that run a prompt once per group.
        single: the layout that runs every row with a prompt of its own.
        faults: the faults of the other layouts, a few words each.
        untrainable: the reason why the model can be scored but not trained; empty if it can be trained.
    """

    sharing: tuple[Layout, ...]
    single: Layout
    faults: tuple[str, ...]
    untrainable: str = ""

    @property
    def way(self) -> str:
        """A name of the layouts in use, for messages."""
        names = [NAMES[type(layout)] for layout in self.sharing or (self.single,)]
        return ", ".join(names[:-1]) + " or " * (len(names) > 1) + names[-1]


NAMES: dict[type, str] = {
    Tree: "prompts shared in a tree",
    Cached: "prompts shared through a cache",
    Packed: "all in one row without padding",
    Plain: "rows padded on the right",
    Alone: "one row at a time",
}


def exact_layouts(loaded: LoadedModel) -> Exact:
    """Try the layouts that a model's structure allows, and cache the verdict.

    A warning names the faults if a model has plain keys and values but cannot share prompts, or cannot be padded.
    """
    if MEMO not in loaded.memo:
        loaded.memo[MEMO] = exact = _tried(loaded)
        if exact.faults:
            warnings.warn(
                f"model '{loaded.name}' is scored with {exact.way}, because cheaper layouts are not exact for it: "
                f"{'; '.join(exact.faults)}",
                stacklevel=2,
            )
    found = loaded.memo[MEMO]
    assert isinstance(found, Exact)
    return found


def _tried(loaded: LoadedModel) -> Exact:
    rows = trial_rows(loaded)
    measure = measure_tolerance(loaded)
    with comparison_mode(loaded, measure.gain):
        truth = torch.cat(
            [
                reference_log_probs(loaded, row.prompt.context_ids, row.completion.token_ids, measure.temperature)
                for row in rows
            ]
        )
        faults = {}
        candidates: list[Layout] = [Plain()]
        if loaded.cache_kind == "kv" and not unreached(loaded):
            packed = [Packed()] if Packed.suits(loaded) else []
            candidates = [Tree(), Cached(), *packed, Plain()]
        right: list[Layout] = []
        for layout in candidates:
            fault = _fault(loaded, layout, rows, truth, measure.temperature, measure.bound)
            if fault:
                faults[type(layout)] = f"{NAMES[type(layout)]}: {fault}"
            else:
                right.append(layout)
    with comparison_mode(loaded):
        trial = GradientTrial(loaded, rows, measure.temperature)
        for layout in tuple(right):
            if fault := trial.fault(layout):
                faults[type(layout)] = f"{NAMES[type(layout)]}: {fault}"
                right.remove(layout)
    # Where rows of a batch affect each other, texts in one row do too, even if the few of the trial do not show it.
    single_kinds = Plain if Plain not in faults else Plain | Packed
    sharing = tuple(layout for layout in right if not isinstance(layout, single_kinds))
    single: Layout = Alone() if Plain in faults else Plain()
    # If the tree fails and the cache is right, the cost is small, and a user could not act on a warning.
    reported = () if sharing and Plain not in faults else tuple(faults.values())
    return Exact(sharing, single, reported, trial.untrainable)


def _fault(
    loaded: LoadedModel, layout: Layout, rows: Sequence[Row], truth: torch.Tensor, temperature: float, bound: float
) -> str:
    """Describe the fault of a layout's log-probabilities; empty if they are right."""
    targets = torch.tensor([token for row in rows for token in row.completion.token_ids])
    try:
        logits = loaded.head.logits(layout.hidden(loaded, rows)).cpu() / temperature
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the code of a model can raise any type
        return short_error(error)
    logp = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    gap = float((logp - truth).abs().max())
    if gap <= bound:
        return ""
    return f"log-probabilities off by {gap:.1g}, where rounding explains {bound:.1g}"


def trial_rows(loaded: LoadedModel) -> list[Row]:
    """Build two completions of uneven length for each prompt of the trial of decoding."""
    contexts = mixed_contexts(loaded)
    longest = num_tried(loaded)
    ids = [token for context in contexts for token in context]
    rows = []
    for group, context in enumerate(contexts):
        for member, length in enumerate((longest, max(1, longest - 2 - group % 2))):
            tokens = tuple(ids[(3 * group + member + step) % len(ids)] for step in range(length))
            zeros = np.zeros(length, dtype=np.float32)
            prompt = Prompt(Problem(f"trial {group}", "trial", ""), context)
            rows.append(Row(group, prompt, Completion(tokens, zeros, zeros, StopReason.MAX_TOKENS, ""), 0.0))
    return rows
