"""The in-process rollout engine: the trainer's own weights, one prefill per prompt, rows that leave when they end.

    prompts --prefill once--> rows (x group size) --decode--> finished rows leave, the next prompts take their place

Several threads may each decode a share of the prompts (``decode_worker``). Weights are used in place, so sampler and
trainer cannot drift apart. The log-probabilities recorded here are the trainer's to float accuracy;
``policy/sampler_gap`` measures the difference at every step.

Left out: models without a plain key/value cache (``in_process.plain``), servers, and verification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

from heliostat.models import LoadedModel
from heliostat.models.lora import perturbed_adapters
from heliostat.rollout.completions import CompletionBuilder, DecodeLimits, GroupCollector
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.in_process.decode_worker import DecodeWorker
from heliostat.rollout.in_process.fused import fused_layers as fuse
from heliostat.rollout.in_process.fused_linear import can_reorder, linear_modules, reordered
from heliostat.rollout.in_process.rows import Rows
from heliostat.rollout.in_process.shared import SharedRows, attending, shares_prompts
from heliostat.rollout.in_process.shared_prefix import SharedPrefix
from heliostat.rollout.in_process.turns import TurnWorker
from heliostat.rollout.in_process.worker_count import suitable_workers
from heliostat.rollout.request import SampleRequest
from heliostat.spans import span
from heliostat.threads import Job, run_in_threads
from heliostat.types import Group, Prompt


class TorchEngine:
    """An engine that decodes with a Hugging Face causal LM in this process.

    Args:
        shared_prompt: decode against one copy of each prompt, where the model can (``in_process.shared``), and prefill
            the tokens that all prompts of a request begin with once.
        fused_layers: with shared prompts, decode through fused layers where the model's layers allow it
            (``in_process.fused``).
        reorder_weights: decode with copies of the weights in an order that suits products of few rows, where the
            machine can (``in_process.fused_linear``).
        num_workers: threads that decode a share of the prompts each, with a share of torch's own threads; 0: as many
            as suit the rows at hand (``worker_count``), and of one the passes, which have few rows, on one thread.
        copies: the class that stores rows where prompts are not shared.

    Attributes:
        way: the name of this way of decoding, as part of a sentence.

    Limits:
        ``group_size=1`` equals sampling each prompt alone; any ``max_rows``, ``num_workers``, ``shared_prompt``,
        ``fused_layers`` and ``reorder_weights`` give the same completions (to float accuracy of the logits), since
        every completion has its own random stream.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        limits: DecodeLimits,
        shared_prompt: bool = True,
        num_workers: int = 1,
        fused_layers: bool = True,
        copies: type[Rows] = Rows,
        reorder_weights: bool = True,
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        self.num_workers = num_workers
        self.builder = CompletionBuilder(loaded, limits)
        self._counted: list[RolloutCounts] = []
        self.copies = copies
        self.rows_kind: type[Rows | SharedRows] = SharedRows if shared_prompt and shares_prompts(loaded) else copies
        with perturbed_adapters(loaded.model, seed=0):  # an adapter that has learned nothing yet would try nothing
            self.reorders = reorder_weights and can_reorder(loaded)
            self.fused = fuse(loaded, self.reorders) if fused_layers and self.rows_kind is SharedRows else None
        self.way = ""

    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample a group for every prompt; see ``Engine.sample``."""
        prompts = request.prompts
        partials = self.builder.begin(request)
        groups: dict[int, Group] = {}

        def job(share: Sequence[int]) -> Job:
            def on_group(place: int, group: Group) -> None:
                groups[share[place]] = group
                if request.on_group is not None:
                    request.on_group(share[place], group)

            part = dataclasses.replace(
                request, prompts=[prompts[index] for index in share], on_group=on_group, dialogues=None
            )
            collector = GroupCollector(self.builder, part, [partials[index] for index in share])
            self._counted.append(RolloutCounts())
            worker = DecodeWorker(
                self.loaded, limits, self.copies, shared_prefix, self.fused, collector, self._counted[-1], pass_threads
            )
            return worker.run if request.dialogues is None else TurnWorker(worker).run

        # Prompts of similar length share a prefill; completions do not depend on the order.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].context_ids))
        num_jobs, pass_threads = self._threads_for(request)
        limits = dataclasses.replace(self.limits, max_rows=max(1, self.limits.max_rows // num_jobs))
        with self._prepared(), attending(self.loaded.model) if self.rows_kind is SharedRows else nullcontext():
            shared_prefix = self._shared_prefix(prompts) if self.rows_kind is SharedRows else None
            run_in_threads([job(order[first::num_jobs]) for first in range(num_jobs)])
        return [groups[index] for index in range(len(prompts))]

    def _threads_for(self, request: SampleRequest) -> tuple[int, int]:
        """Return the number of workers, and torch's threads in a pass of each; 0: a share of all."""
        num_prompts = max(1, len(request.prompts))
        if self.num_workers or self.loaded.model.device.type != "cpu":
            return min(self.num_workers or 1, num_prompts), 0
        num_rows = min(self.limits.max_rows, num_prompts * request.group_size)
        num_workers = min(suitable_workers(self.loaded, num_rows), num_prompts)
        return num_workers, int(num_workers == 1)

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Within this context, products use the weights that the model has now, reordered where that is faster."""
        model = self.loaded.model
        with ExitStack() as stack:
            if self.fused is not None:
                stack.enter_context(self.fused.prepared())
            if self.reorders:
                # The layers' own modules would hold a second copy, for the prefill alone.
                stack.enter_context(reordered(linear_modules(self.loaded.head.projection if self.fused else model)))
            yield

    def _shared_prefix(self, prompts: Sequence[Prompt]) -> SharedPrefix:
        """Prefill the tokens that all prompts begin with."""
        with span("prefill"):
            prefix = SharedPrefix.of(self.loaded, [prompt.context_ids for prompt in prompts])
        self._counted.append(RolloutCounts())
        self._counted[-1].add_common(prefix.length)
        return prefix

    @property
    def counts(self) -> RolloutCounts:
        """The counts since they were last taken."""
        return sum(self._counted, start=RolloutCounts())

    def take_counts(self) -> RolloutCounts:
        """See ``Engine.take_counts``."""
        counts, self._counted = self.counts, []
        return counts

    def clone_for(self, loaded: LoadedModel) -> TorchEngine:
        """See ``Engine.clone_for``."""
        is_shared, is_fused = self.rows_kind is SharedRows, self.fused is not None
        clone = TorchEngine(loaded, self.limits, is_shared, self.num_workers, is_fused, self.copies, self.reorders)
        clone.way = self.way
        return clone

    def stop(self) -> None:
        """See ``Engine.stop``; it ends at the next token."""
        self.builder.stopped.set()
