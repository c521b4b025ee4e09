"""Completions from a sampling server: one request asks for a prompt's whole group, and every answer is checked.

    prompt ids --/v1/completions, n = group size--> token ids, log-probs, why each ended

Left out: HTTP (``client``), and whether log-probabilities are those of the trainer's weights (``weight_sync``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.models import LoadedModel
from heliostat.rollout.completions import CompletionBuilder, DecodeLimits, PartialCompletion
from heliostat.rollout.sampling import SamplingSettings
from heliostat.rollout.server.answers import Choice, Completions, parsed, wrong_answer
from heliostat.rollout.server.client import Server, ServerError, shortened
from heliostat.rollout.server.dialect import Dialect
from heliostat.types import Prompt, StopReason

MAX_LOGP = 1e-3
"""Log-probabilities may be above 0 by rounding, and by no more."""


@dataclass(slots=True)
class CompletionClient:
    """A client of the server's completions, for one model under one set of limits."""

    server: Server
    dialect: Dialect
    loaded: LoadedModel
    limits: DecodeLimits
    builder: CompletionBuilder

    def complete(
        self, names: tuple[str, str], prompt: Prompt, partials: Sequence[PartialCompletion], settings: SamplingSettings
    ) -> None:
        """Decode one turn of one prompt's group on the server and append it to its completions.

        The completions have the same tokens so far: none in a group's first turn; later turns are one request each,
        with all ids as the prompt.

        Args:
            names: of the served model and of the adapter on it, which may be empty.

        Raises:
            ServerError: the server cannot be used, or its answer cannot be right.
        """
        body = {
            "prompt": [*prompt.context_ids, *partials[0].token_ids],
            "n": len(partials),
            "seed": partials[0].seed + len(partials[0].turns),  # of several turns, each has its own
            "max_tokens": partials[0].num_left,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop": list(self.limits.stop),
            "stop_token_ids": sorted(self.loaded.eos_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        answer = self.server.post("/v1/completions", self.dialect.completion_request(*names, body))
        choices = parsed(self.server, self.dialect.title, Completions, answer).choices
        if sorted(choice.index for choice in choices) != list(range(len(partials))):
            raise self._wrong(f"{len(choices)} completions where {len(partials)} were asked for")
        for choice in choices:
            self._fill(partials[choice.index], choice)

    def _fill(self, partial: PartialCompletion, choice: Choice) -> None:
        ids, logps = choice.token_ids, choice.logprobs.token_logprobs
        if not 1 <= len(ids) <= partial.num_left or len(ids) != len(logps):
            raise self._wrong(f"{len(ids)} tokens with {len(logps)} log-probabilities, of at most {partial.num_left}")
        size = self.loaded.model.config.get_text_config().vocab_size
        if not all(0 <= token < size for token in ids) or not all(
            math.isfinite(logp) and logp < MAX_LOGP for logp in logps
        ):
            raise self._wrong("token ids outside the vocabulary, or log-probabilities that are not finite or above 0")
        reason = self._turn_end(partial, choice)
        partial.token_ids += ids
        partial.logp += logps
        # The server does not return entropies. The mean of -log p over draws estimates the entropy.
        partial.entropy += [-logp for logp in logps]
        self.builder.end_turn(partial, reason)

    def _turn_end(self, partial: PartialCompletion, choice: Choice) -> StopReason:
        if choice.token_ids[-1] in self.loaded.eos_ids:
            return StopReason.EOS
        if choice.finish_reason == "stop" and self.builder.holds_stop_string(choice.token_ids):
            return StopReason.STOP_STRING
        if choice.finish_reason == "length" and len(choice.token_ids) == partial.num_left:
            return partial.out_of_room
        reason = shortened(choice.finish_reason, 40)
        raise self._wrong(
            f"a completion of {len(choice.token_ids)} tokens that ended by '{reason}', for no reason that the request "
            "gave"
        )

    def _wrong(self, what: str) -> ServerError:
        return wrong_answer(self.server, self.dialect.title, what)
