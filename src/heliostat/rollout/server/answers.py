"""The answers of a server's routes, as far as they are read; every part that is read must have its type.

Left out: the routes (``vllm``, ``sglang``), and numbers that cannot be right (``completions``).
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliostat.rollout.server.client import Server, ServerError, shortened


class Answer(BaseModel):
    """A part of an answer; keys that are not declared are not read."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


A = TypeVar("A", bound=Answer)


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


class Card(Answer):
    """A model, by the name that requests give it, and its limit on prompt and completion together."""

    id: str
    max_model_len: int | None = None


class Models(Answer):
    """The answer of ``/v1/models``."""

    data: list[Card] = Field(min_length=1)


class VllmModel(Answer):
    """vLLM's settings of the model."""

    dtype: str
    logprobs_mode: str
    enable_sleep_mode: bool = True
    """Assumed where a server does not tell."""


class VllmConfig(Answer):
    """vLLM's settings."""

    model_config_: VllmModel = Field(alias="model_config")


class ModelSettings(Answer):
    """The answer of vLLM's ``/server_info``."""

    vllm_config: VllmConfig


class SGLangSettings(Answer):
    """The answer of SGLang's ``/server_info``."""

    dtype: str
    max_req_input_len: int
    enable_deterministic_inference: bool


class Inspection(Answer):
    """The answer of vLLM's ``/collective_rpc`` to ``get_model_inspection``: printed modules, one text a worker."""

    results: list[str]


class WeightInfo(Answer):
    """The name of the weights that a server holds."""

    weight_version: str


class Sleeping(Answer):
    """The answer of vLLM's ``/is_sleeping``; true of a paused server too."""

    is_sleeping: bool


class Woken(Answer):
    """The answer of vLLM's ``/wake_up``: ``"awake"``, or ``"sleeping"`` while some memory is still away."""

    status: str


class WorldSize(Answer):
    """The answer of vLLM's ``/get_world_size``: its workers, over all replicas."""

    world_size: int = Field(ge=1)


class SGLangModel(WeightInfo):
    """The answer of SGLang's ``/model_info``."""

    model_path: str


def parsed(server: Server, title: str, kind: type[A], answer: Any) -> A:
    """Read an answer as its type.

    Raises:
        ServerError: a part is missing or has another type.
    """
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its whole"
        raise wrong_answer(server, title, f"{shortened(first['msg'])} at '{where}'") from None


def wrong_answer(server: Server, title: str, what: str) -> ServerError:
    """Return the error of an answer that cannot be right."""
    return ServerError(f"{server.title} {server.url} answered with {what}; is it {title} or newer, serving this model?")
