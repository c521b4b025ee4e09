"""The routes by which a server says how probable given tokens are, in the dialects of vLLM and SGLang.

    vLLM     POST /v1/completions   prompt: lists of ids, prompt_logprobs: 0; a table by token id for each place
    SGLang   POST /generate         input_ids, logprob_start_len; log-probability, id and text for each place
    both     GET /v1/models, POST /tokenize

Every answer has to repeat the token ids that were sent. All sampling settings are given, since a server would otherwise
take those of the model's ``generation_config.json``; the temperature is 1.

Left out: HTTP (``rollout.server.client``), batches and their order (``served_log_probs``), and whether the numbers are
right (``server_checks``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from pydantic import Field

from heliostat.rollout.server.answers import Answer, Models, parsed, wrong_answer
from heliostat.rollout.server.answers import Card as ServedCard
from heliostat.rollout.server.client import Server
from heliostat.rollout.server.completions import MAX_LOGP

PLAIN_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids, and the place of the first one whose log-probability is asked for; at least 1."""

    ids: tuple[int, ...]
    start: int


class ScoringRoutes(Protocol):
    """The routes of one kind of server."""

    @property
    def title(self) -> str:
        """The name of the kind, and the version whose sources the routes were written against."""
        ...

    @property
    def headroom(self) -> int:
        """Tokens of the server's context that a scored sequence must leave free."""
        ...

    def score(self, server: Server, model: str, asked: Sequence[Asked]) -> list[Float[np.ndarray, " _"]]:
        """Return the log-probabilities of the ids from ``start`` on, of each sequence, in one request.

        Raises:
            ServerError: there is no answer, or it cannot be right.
        """
        ...

    def draw(self, server: Server, model: str, ids: Sequence[int], num: int) -> list[int]:
        """Draw the token that follows ``ids`` at temperature 1, ``num`` times."""
        ...


class _PromptLogProb(Answer):
    logprob: float


class _ScoredChoice(Answer):
    index: int
    prompt_logprobs: list[dict[str, _PromptLogProb] | None]


class _Scored(Answer):
    choices: list[_ScoredChoice]


class _DrawnChoice(Answer):
    token_ids: list[int] = Field(min_length=1)


class _Drawn(Answer):
    choices: list[_DrawnChoice]


class _MetaInfo(Answer):
    input_token_logprobs: list[list[float | int | str | None]]


class _Generated(Answer):
    meta_info: _MetaInfo


class _AllGenerated(Answer):
    answers: list[_Generated]


class _GeneratedIds(Answer):
    output_ids: list[int] = Field(min_length=1)


class _AllIds(Answer):
    answers: list[_GeneratedIds]


class _Tokens(Answer):
    tokens: list[int]


def served_models(server: Server, title: str) -> Mapping[str, ServedCard]:
    """Ask for the models that a server serves, by name."""
    return {card.id: card for card in parsed(server, title, Models, server.get("/v1/models")).data}


def tokenized(server: Server, title: str, model: str, text: str) -> list[int]:
    """Ask for the token ids of a text, without any that the tokenizer adds around it."""
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    return parsed(server, title, _Tokens, server.post("/tokenize", body)).tokens


@dataclass(frozen=True, slots=True)
class VllmScoring:
    """vLLM's routes; see ``ScoringRoutes``. Its log-probabilities of prompts ignore the temperature: they are at 1."""

    title: str = "vLLM 0.32"
    headroom: int = 1

    def score(self, server: Server, model: str, asked: Sequence[Asked]) -> list[Float[np.ndarray, " _"]]:
        body = {**self._body(model), "prompt": [list(one.ids) for one in asked], "prompt_logprobs": 0}
        choices = parsed(server, self.title, _Scored, server.post("/v1/completions", body)).choices
        if sorted(choice.index for choice in choices) != list(range(len(asked))):
            raise wrong_answer(server, self.title, f"{len(choices)} sequences where {len(asked)} were sent")
        found = [np.empty(0, dtype=np.float32)] * len(asked)
        for choice in choices:
            one = asked[choice.index]
            if len(choice.prompt_logprobs) != len(one.ids):
                said = f"{len(choice.prompt_logprobs)} log-probabilities for {len(one.ids)} tokens"
                raise wrong_answer(server, self.title, said)
            pairs = zip(one.ids[one.start :], choice.prompt_logprobs[one.start :], strict=True)
            given = [(by_id or {}).get(str(token)) for token, by_id in pairs]
            values = [None if one_of is None else one_of.logprob for one_of in given]
            found[choice.index] = _checked(server, self.title, one, values)
        return found

    def draw(self, server: Server, model: str, ids: Sequence[int], num: int) -> list[int]:
        # No seed: vLLM 0.32 on a CPU ends when it divides the prompt of a request that has one.
        body = {**self._body(model), "prompt": list(ids), "n": num, "return_token_ids": True}
        choices = parsed(server, self.title, _Drawn, server.post("/v1/completions", body)).choices
        return [choice.token_ids[0] for choice in choices]

    @staticmethod
    def _body(model: str) -> dict[str, object]:
        return {"model": model, "max_tokens": 1, "top_k": 0, **PLAIN_SAMPLING}


@dataclass(frozen=True, slots=True)
class SGLangScoring:
    """SGLang's routes, see ``ScoringRoutes``; a server has one model, and ``/generate`` does not name it."""

    title: str = "SGLang 0.5.23"
    headroom: int = 6

    def score(self, server: Server, model: str, asked: Sequence[Asked]) -> list[Float[np.ndarray, " _"]]:
        body = {
            "input_ids": [list(one.ids) for one in asked],
            "sampling_params": {"max_new_tokens": 0, "top_k": -1, **PLAIN_SAMPLING},
            "return_logprob": True,
            "logprob_start_len": [one.start - 1 for one in asked],  # the first one that is returned is empty
        }
        answers = parsed(server, self.title, _AllGenerated, {"answers": server.post("/generate", body)}).answers
        if len(answers) != len(asked):
            raise wrong_answer(server, self.title, f"{len(answers)} sequences where {len(asked)} were sent")
        return [self._of_sequence(server, one, got.meta_info) for one, got in zip(asked, answers, strict=True)]

    def draw(self, server: Server, model: str, ids: Sequence[int], num: int) -> list[int]:
        settings = {"max_new_tokens": 1, "n": num, "top_k": -1, **PLAIN_SAMPLING}
        answer = server.post("/generate", {"input_ids": list(ids), "sampling_params": settings})
        answers = parsed(server, self.title, _AllIds, {"answers": answer}).answers
        return [one.output_ids[0] for one in answers]

    def _of_sequence(self, server: Server, asked: Asked, meta: _MetaInfo) -> Float[np.ndarray, " _"]:
        num = len(asked.ids) - asked.start
        given = meta.input_token_logprobs[-num:]
        if len(given) != num or any(len(entry) < 2 for entry in given):
            raise wrong_answer(server, self.title, f"{len(given)} log-probabilities where {num} were asked for")
        pairs = zip(asked.ids[asked.start :], given, strict=True)
        return _checked(server, self.title, asked, [entry[0] if entry[1] == token else None for token, entry in pairs])


SCORING: Mapping[str, ScoringRoutes] = {"vllm": VllmScoring(), "sglang": SGLangScoring()}
"""The routes by the server's kind, as in ``teacher.engine``."""


def _checked(server: Server, title: str, asked: Asked, values: Sequence[object]) -> Float[np.ndarray, " _"]:
    """Return log-probabilities as an array.

    Args:
        values: ``None`` where the answer is about another token than the one that was sent.
    """
    for place, value in enumerate(values, start=asked.start):
        if value is None:
            token = asked.ids[place]
            raise wrong_answer(
                server, title, f"no log-probability for the token {token} at place {place} that was sent"
            )
        if not isinstance(value, float | int) or not math.isfinite(value) or value > MAX_LOGP:
            raise wrong_answer(server, title, f"{value!r} as a log-probability, which is no finite number up to 0")
    return np.array(values, dtype=np.float32)
