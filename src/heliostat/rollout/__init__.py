"""Rollout: prompts in, ragged token ids with the sampler's own log-probabilities out."""

from heliostat.models import LoadedModel
from heliostat.rollout.drafts import DecodeLimits
from heliostat.rollout.engine import Engine, RolloutCounts, TorchEngine
from heliostat.rollout.plain import PlainEngine
from heliostat.rollout.rows import key_values
from heliostat.rollout.sampling import NonFiniteLogits, SamplingSettings, completion_seed

__all__ = [
    "DecodeLimits",
    "Engine",
    "NonFiniteLogits",
    "PlainEngine",
    "RolloutCounts",
    "SamplingSettings",
    "TorchEngine",
    "build_engine",
    "completion_seed",
    "key_values",
]


def build_engine(loaded: LoadedModel, limits: DecodeLimits) -> Engine:
    """The engine that suits the model's cache."""
    return TorchEngine(loaded, limits) if loaded.cache_kind == "kv" else PlainEngine(loaded, limits)
