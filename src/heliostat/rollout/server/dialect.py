"""The dialect of a sampling server: which routes it has, and how it says what the engine needs to know.

Everything else is the same for every server: HTTP (``client``), completions, the check of weights. A dialect holds no
state.

Left out: the dialects (``vllm``, ``sglang``), and what is concluded from a server's answers (``fit``, ``holder``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from heliostat.arguments import PathArg
from heliostat.cards import Card
from heliostat.rollout.server.client import Server


@dataclass(frozen=True, slots=True, repr=False)
class ServedModel(Card):
    """A server's account of the model that it serves; whatever it does not tell is left out, and never compared.

    Attributes:
        name: as requests have to give it.
        max_length: tokens that a prompt and its completion may have together; ``None``: not told.
        dtype: of its weights, such as ``"float32"``; empty: not told.
        raw_logp_advice: the way to get log-probabilities at the sampling temperature, if the server returns others;
            empty: it returns these, or does not tell.
        sizes: sizes of the model by their names in a transformers configuration, such as ``{"hidden_size": 128}``.
        sleep_advice: the way to start it so that it can sleep; empty: it can, or does not tell.
        seeds_whole_requests: whether all completions of one request get the same random numbers.
    """

    name: str
    max_length: int | None = None
    dtype: str = ""
    raw_logp_advice: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    seeds_whole_requests: bool = False
    sleep_advice: str = ""


class Dialect(Protocol):
    """The routes of one kind of server."""

    @property
    def title(self) -> str:
        """The name of the kind and the first version that the routes were seen in."""
        ...

    @property
    def key_name(self) -> str:
        """The environment variable that holds the server's key; keys have no place in a recipe."""
        ...

    def describe(self, server: Server) -> ServedModel:
        """Ask the server for the model that it serves.

        Raises:
            ServerError: it cannot be asked, or was not started in a way that lets weights be updated.
        """
        ...

    def weight_version(self, server: Server) -> str:
        """Ask the server for the name that the last sync gave its weights; some other text before the first one."""
        ...

    def load_weights(self, server: Server, folder: PathArg, version: str) -> None:
        """Make the server finish its requests, load the model in ``folder``, forget its caches, and go on.

        Args:
            version: the name that ``weight_version`` returns from now on.

        Raises:
            ServerError: the weights may not have been loaded.
        """
        ...

    def mark_weights(self, server: Server, version: str) -> None:
        """Give the server's weights the name that ``weight_version`` returns, without touching them."""
        ...

    def load_adapter(self, server: Server, name: str, folder: PathArg) -> None:
        """Load the adapter in ``folder`` next to the model.

        Raises:
            ServerError: the server was not started for that, or cannot load this one.
        """
        ...

    def unload_adapter(self, server: Server, name: str) -> None:
        """Remove an adapter from the server."""
        ...

    def completion_request(self, model: str, adapter: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a request to ``/v1/completions``.

        Args:
            adapter: applied to the model; empty: none.
            body: with ``top_k = 0`` for all tokens, and otherwise in words that every server knows.
        """
        ...
