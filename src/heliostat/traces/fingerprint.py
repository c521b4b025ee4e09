"""Fingerprint tokenizers and weights: short names that are equal for equal contents.

Left out: proof. A fingerprint of weights looks at an even sample of every tensor, which any optimizer step changes.
"""

from __future__ import annotations

import hashlib
import json

from heliostat.models import LoadedModel

_SAMPLED = 1024


def tokenizer_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint the map from ids to text: the vocabulary, and the id that ends a completion."""
    words = sorted(loaded.tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps([loaded.eos_id, words]).encode(), digest_size=8).hexdigest()


def policy_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint the weights: every tensor's name and shape, and up to 1,024 evenly spaced values of it."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, tensor in loaded.model.named_parameters():
        hasher.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        hasher.update(flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu().numpy().tobytes())
    return hasher.hexdigest()
