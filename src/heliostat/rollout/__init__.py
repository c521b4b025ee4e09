"""Rollout: prompts in, ragged token ids with the sampler's own log-probabilities out."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from heliostat.config import RolloutSection
from heliostat.models import LoadedModel
from heliostat.rollout.drafts import Announce, DecodeLimits, SamplingStopped
from heliostat.rollout.engine import Engine, RolloutCounts, TorchEngine
from heliostat.rollout.parity import PARITY_BOUNDS, ParityError
from heliostat.rollout.plain import PlainEngine
from heliostat.rollout.rows import key_values
from heliostat.rollout.sampling import NonFiniteLogits, SamplingSettings, completion_seed
from heliostat.rollout.server import Server, ServerError
from heliostat.rollout.vllm import Lead, VllmEngine, alone
from heliostat.rollout.ways import fastest_right_way

__all__ = [
    "PARITY_BOUNDS",
    "Announce",
    "DecodeLimits",
    "Engine",
    "NonFiniteLogits",
    "ParityError",
    "PlainEngine",
    "RolloutCounts",
    "SamplingSettings",
    "SamplingStopped",
    "Server",
    "ServerError",
    "TorchEngine",
    "VllmEngine",
    "build_engine",
    "completion_seed",
    "key_values",
]


def build_engine(loaded: LoadedModel, limits: DecodeLimits, section: RolloutSection, lead: Lead = alone) -> Engine:
    """The engine that a recipe names.

    Args:
        lead: which of the processes that share the model speaks for all to a server.
    """
    return ENGINES[section.engine](loaded, limits, section, lead)


def _in_process(loaded: LoadedModel, limits: DecodeLimits, section: RolloutSection, lead: Lead) -> Engine:
    """The fastest that gives the model's own numbers."""
    engine = fastest_right_way(loaded, limits, section)
    if isinstance(engine, PlainEngine) and section.num_workers > 1:
        warnings.warn(
            f"rollout.num_workers = {section.num_workers} has no effect: the memory of '{loaded.name}' is not "
            f"plain keys and values, so it is decoded in one thread",
            stacklevel=2,
        )
    return engine


def _on_server(loaded: LoadedModel, limits: DecodeLimits, section: RolloutSection, lead: Lead) -> Engine:
    server = Server(
        section.server_url.rstrip("/"), section.server_timeout_s, section.server_retries, os.environ.get(API_KEY, "")
    )
    max_gap = section.max_parity_gap or PARITY_BOUNDS[loaded.model.dtype]
    return VllmEngine(loaded, limits, server, Path(section.sync_dir), section.server_requests, max_gap, lead=lead)


ENGINES: dict[str, Callable[[LoadedModel, DecodeLimits, RolloutSection, Lead], Engine]] = {
    "torch": _in_process,
    "vllm": _on_server,
}
API_KEY = "VLLM_API_KEY"
"""The environment variable that holds the server's key; keys have no place in a recipe."""
