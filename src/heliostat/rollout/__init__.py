"""Rollouts: prompts in, ragged token ids with the sampler's own log-probabilities out.

request.py       the request that every engine takes
own_engine.py    an engine of a user's module or of an installed package
engine.py        the interface of an engine, and the counts of its work
sampling.py      from logits to one token, its log-probability and its entropy
completions.py   completions while they are being decoded, and what ends them
in_process/      engines that decode with the trainer's own weights
server/          the engine that samples from a sampling server
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from heliostat.config import ConfigError, RolloutSection
from heliostat.models import LoadedModel
from heliostat.named_imports import find
from heliostat.rollout.completions import DecodeLimits, SamplingStopped
from heliostat.rollout.engine import Engine, RolloutCounts
from heliostat.rollout.in_process.engine import TorchEngine
from heliostat.rollout.in_process.plain import PlainEngine
from heliostat.rollout.in_process.rows import key_values
from heliostat.rollout.in_process.ways import fastest_right_way
from heliostat.rollout.own_engine import own_engine
from heliostat.rollout.request import OnGroup, SampleRequest
from heliostat.rollout.sampling import NonFiniteLogits, SamplingSettings, completion_seed
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.dialect import Dialect
from heliostat.rollout.server.engine import ServerEngine
from heliostat.rollout.server.nccl_transfer import NcclTransfer
from heliostat.rollout.server.parity import PARITY_BOUNDS, ParityError
from heliostat.rollout.server.sglang import SGLang
from heliostat.rollout.server.vllm import Vllm
from heliostat.rollout.server.vllm_sleep import VllmSleep
from heliostat.rollout.server.weight_sync import RunOnMain, run_here

__all__ = [
    "ENGINES",
    "PARITY_BOUNDS",
    "BuildEngine",
    "DecodeLimits",
    "Engine",
    "NonFiniteLogits",
    "OnGroup",
    "ParityError",
    "PlainEngine",
    "RolloutCounts",
    "SGLang",
    "SampleRequest",
    "SamplingSettings",
    "SamplingStopped",
    "Server",
    "ServerEngine",
    "ServerError",
    "TorchEngine",
    "Vllm",
    "build_engine",
    "completion_seed",
    "engine_builder",
    "key_values",
]


class BuildEngine(Protocol):
    """A function that builds an engine on a loaded model; see ``build_engine`` for its arguments."""

    def __call__(
        self,
        loaded: LoadedModel,
        limits: DecodeLimits,
        section: RolloutSection,
        run_on_main: RunOnMain = run_here,
        several_turns: bool = False,
    ) -> Engine: ...


def build_engine(
    loaded: LoadedModel,
    limits: DecodeLimits,
    section: RolloutSection,
    run_on_main: RunOnMain = run_here,
    several_turns: bool = False,
) -> Engine:
    """Build the engine that a recipe names.

    Args:
        several_turns: whether completions will have several turns, which are then tried too.
        run_on_main: runs the sync of weights to a server in one of the processes that share the model.

    Raises:
        ConfigError: there is no such engine, no way of decoding the model is correct, or the client of the server is
            not installed.
    """
    return engine_builder(section)(loaded, limits, section, run_on_main, several_turns)


def engine_builder(section: RolloutSection) -> BuildEngine:
    """Find the engine that a recipe names, and check its settings; needs no model.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, it is no engine, or a setting is wrong.
    """
    found = find("engine", section.engine, ENGINES, section.import_from)
    if section.engine not in ENGINES:
        return own_engine(section, found)
    if section.engine_settings:
        raise ConfigError(
            f"rollout.engine_settings is only used with an engine of your own (now '{section.engine}'); the settings "
            "of a shipped one are keys of [rollout]"
        )
    build: BuildEngine = found
    return build


def _in_process(
    loaded: LoadedModel,
    limits: DecodeLimits,
    section: RolloutSection,
    run_on_main: RunOnMain = run_here,
    several_turns: bool = False,
) -> Engine:
    """Build the fastest engine that gives the model's own numbers."""
    engine = fastest_right_way(loaded, limits, section, several_turns)
    if isinstance(engine, PlainEngine) and section.num_workers > 1:
        warnings.warn(
            f"rollout.num_workers = {section.num_workers} has no effect: the memory of '{loaded.name}' is not "
            f"plain keys and values, so it is decoded in one thread",
            stacklevel=2,
        )
    return engine


DIALECTS: Mapping[str, Callable[[], Dialect]] = {"vllm": Vllm, "sglang": SGLang}
"""The kinds of sampling servers by their names in ``rollout.engine``."""


def _on_server(
    loaded: LoadedModel,
    limits: DecodeLimits,
    section: RolloutSection,
    run_on_main: RunOnMain = run_here,
    several_turns: bool = False,
) -> Engine:
    dialect = DIALECTS[section.engine]()
    server = Server(
        section.server_url.rstrip("/").removesuffix("/v1"),
        section.server_timeout_s,
        section.server_retries,
        os.environ.get(dialect.key_name, ""),
        key_name=dialect.key_name,
    )
    max_gap = section.max_parity_gap or PARITY_BOUNDS[loaded.model.dtype]
    return ServerEngine(
        loaded,
        limits,
        server,
        dialect,
        Path(section.sync_dir),
        section.server_requests,
        max_gap,
        run_on_main=run_on_main,
        parts="weights" if section.sync == "nccl" else section.sync,
        sleep=VllmSleep(section.sleep_level) if section.sleep_level else None,
        transfer=NcclTransfer() if section.sync == "nccl" else None,
    )


ENGINES: dict[str, BuildEngine] = {"torch": _in_process, **dict.fromkeys(DIALECTS, _on_server)}
"""Every shipped engine by name."""
