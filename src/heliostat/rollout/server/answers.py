"""The answers of a vLLM server's routes, as far as they are read; every part that is read must have its type.

Left out: the routes (``server.engine``), and numbers that cannot be right.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A part of an answer; keys that are not declared are not read."""

    model_config = ConfigDict(strict=True)


class LogProbs(Answer):
    """Log-probabilities of a completion's tokens, in nats."""

    token_logprobs: list[float]


class Choice(Answer):
    """One completion of a group."""

    index: int
    token_ids: list[int]
    logprobs: LogProbs
    finish_reason: str


class Completions(Answer):
    """The answer of ``/v1/completions``: a whole group."""

    choices: list[Choice]


class ServedModel(Answer):
    """A model, by the name that requests give it."""

    id: str


class Models(Answer):
    """The answer of ``/v1/models``."""

    data: list[ServedModel] = Field(min_length=1)
