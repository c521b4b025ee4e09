"""Load causal language models, save them, and convert between text and token ids.

``load_model`` gives a ``LoadedModel``; ``encode_problem``, ``encode_solution``, ``TurnFormat`` and ``decode`` are the
only conversions between text and ids. ``LoadedModel.head`` computes logits only at chosen positions. ``save_model``
writes a folder that plain transformers loads. transformers itself is imported on first use.

Left out: sampling (``rollout``) and training (``train``).
"""

from heliostat.models.architecture_probes import cache_kind
from heliostat.models.flops import BACKWARD_COST, forward_flops
from heliostat.models.head import Head, completion_head
from heliostat.models.loaded_model import LoadedModel
from heliostat.models.loading.load import load_model
from heliostat.models.loading.tiny import TinyShape
from heliostat.models.prompts.conversations import encode_turns
from heliostat.models.prompts.encoding import decode, decode_to_stop, encode_problem, encode_solution
from heliostat.models.prompts.turn_format import TurnFormat, observation_text
from heliostat.models.sampler_copy import (
    are_current,
    gradient_copy_of,
    sampler_copy_of,
    share_weights,
    snapshot_weights,
    with_weights,
)
from heliostat.models.saving import save_model

__all__ = [
    "BACKWARD_COST",
    "Head",
    "LoadedModel",
    "TinyShape",
    "TurnFormat",
    "are_current",
    "cache_kind",
    "completion_head",
    "decode",
    "decode_to_stop",
    "encode_problem",
    "encode_solution",
    "encode_turns",
    "forward_flops",
    "gradient_copy_of",
    "load_model",
    "observation_text",
    "sampler_copy_of",
    "save_model",
    "share_weights",
    "snapshot_weights",
    "with_weights",
]
