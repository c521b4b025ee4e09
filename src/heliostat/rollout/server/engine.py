"""The rollout engine on a running server: token ids in and out, with the server's log-probabilities.

Completions always come from the engine's own model: before a request whose weights differ from those sent last, they
are synced (``weight_sync``). Engines on copies of the model (``clone_for``) take turns: one holds the server from its
sync to its last completion. The kinds of servers differ in their dialects alone (``vllm``, ``sglang``).

Left out: exact entropies, which servers do not return (``completions`` estimates them).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from heliostat.arguments import PathArg, as_path
from heliostat.models import LoadedModel
from heliostat.rollout.completions import CompletionBuilder, DecodeLimits, GroupCollector, PartialCompletion
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.server.client import Server
from heliostat.rollout.server.completions import CompletionClient
from heliostat.rollout.server.dialect import Dialect
from heliostat.rollout.server.nccl_transfer import NcclTransfer
from heliostat.rollout.server.vllm_sleep import VllmSleep
from heliostat.rollout.server.weight_sync import RunOnMain, ServedWeights, SyncedParts, WeightSync, run_here
from heliostat.types import Group, Prompt


class ServerEngine:
    """An engine that samples from one server, which serves the model being trained.

    Args:
        dialect: the server's routes.
        sync_dir: folder that trainer and server see under the same path.
        num_requests: prompts in flight at once.
        max_gap: largest gap in nats that the probe accepts.
        served: the server's state, where other engines use it too.
        parts: that a sync sends (``WeightSync.parts``).
        run_on_main: runs the sync of weights in one of the processes that sample together, each its own prompts.
        sleep: of the server while ``rest`` lasts; ``None``: it stays awake.
        transfer: of the whole model over NCCL; ``None``: through files in ``sync_dir``.

    **Limits**: the tokens' log-probabilities are the trainer's within ``max_gap``, or sampling raises ``ParityError``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        limits: DecodeLimits,
        server: Server,
        dialect: Dialect,
        sync_dir: PathArg,
        num_requests: int,
        max_gap: float,
        served: ServedWeights | None = None,
        run_on_main: RunOnMain = run_here,
        parts: SyncedParts = "auto",
        sleep: VllmSleep | None = None,
        transfer: NcclTransfer | None = None,
    ) -> None:
        self.loaded = loaded
        self.builder = CompletionBuilder(loaded, limits)
        self.client = CompletionClient(server, dialect, loaded, limits, self.builder)
        self.weights = WeightSync(
            self.client, as_path(sync_dir), max_gap, served or ServedWeights(), run_on_main, parts, sleep, transfer
        )
        self.num_requests = num_requests
        self.counts = RolloutCounts()
        self.way = f"the rollout server at {server.url}"

    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample a group for every prompt; see ``Engine.sample``.

        Raises:
            ServerError: the server cannot be used, or its answer cannot be right.
            ParityError: its log-probabilities are not those of the trainer's weights.
        """
        partials = self.builder.begin(request)
        collector = GroupCollector(self.builder, request, partials)
        served = self.weights.served

        def complete(prompt: Prompt, group: Sequence[PartialCompletion]) -> None:
            self.client.complete(served.names, prompt, group, request.settings)

        def further_turns(prompt: Prompt, partial: PartialCompletion) -> None:
            while partial.pending is not None:
                if self.builder.go_on(partial):
                    complete(prompt, [partial])

        with served.turn:
            self.weights.sync_weights(request.prompts, request.settings)
            rows = [(prompt, one) for prompt, group in zip(request.prompts, partials, strict=True) for one in group]
            asked = list(zip(request.prompts, partials, strict=True))
            if served.model is not None and served.model.seeds_whole_requests:
                asked = [(prompt, [one]) for prompt, one in rows]
            with ThreadPoolExecutor(self.num_requests) as pool:
                for _ in pool.map(complete, *zip(*asked, strict=True)):
                    collector.collect()
                for _ in pool.map(further_turns, *zip(*rows, strict=True)):
                    collector.collect()
            self.weights.confirm_weights()
        for prompt, group in zip(request.prompts, partials, strict=True):
            self._count(prompt, group)
        return collector.groups()

    def rest(self) -> None:
        """Let the server sleep until the next request, if it is to; all processes call it when all have sampled.

        Raises:
            ServerError: it cannot sleep, or another run uses it.
        """
        with self.weights.served.turn:
            self.weights.rest()

    def take_counts(self) -> RolloutCounts:
        """See ``Engine.take_counts``; the least that the server had to compute, from token counts."""
        counts, self.counts = self.counts, RolloutCounts()
        return counts

    def clone_for(self, loaded: LoadedModel) -> ServerEngine:
        """See ``Engine.clone_for``; the server is the same."""
        sync = self.weights
        return ServerEngine(
            loaded,
            self.client.limits,
            replace(self.client.server),  # connections of its own
            self.client.dialect,
            sync.sync_dir,
            self.num_requests,
            sync.max_gap,
            served=sync.served,
            run_on_main=sync.run_on_main,
            parts=sync.parts,
            sleep=sync.sleep,
            transfer=sync.transfer,
        )

    def stop(self) -> None:
        """See ``Engine.stop``; requests are cancelled, and a server ends a request whose connection closes."""
        self.builder.stopped.set()
        self.client.server.abort()

    def _count(self, prompt: Prompt, partials: Sequence[PartialCompletion]) -> None:
        length = len(prompt.context_ids)
        self.counts.prefills += 1
        self.counts.prompt_tokens += length
        self.counts.prompt_attended += length * (length + 1) // 2
        for partial in partials:
            fed = len(partial.token_ids) - 1  # the last token is sampled and never fed back; replies count as decoded
            self.counts.decode_steps = max(self.counts.decode_steps, fed)
            self.counts.decoded_rows += fed
            self.counts.decoded_attended += fed * length + fed * (fed + 1) // 2
