"""Digests of weights and tokenizers, to the last bit: what a test compares after saving and loading."""

import hashlib
import json

import torch

from heliostat.models import LoadedModel
from heliostat.models.prompts.chat_template import without_day


def weights_digest(loaded: LoadedModel) -> str:
    """Hash every weight's name, shape, dtype and bytes.

    Tied weights count once, under their first name, so the hash survives saving and loading.
    """
    digest = hashlib.sha256()
    saved = loaded.model.state_dict()
    buffers = {name: buffer for name, buffer in loaded.model.named_buffers() if name in saved}
    tensors = {**dict(loaded.model.named_parameters()), **buffers}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_digest(loaded: LoadedModel) -> str:
    """Hash what decides ids: the tokenizer's own serialisation, its special tokens and its chat template.

    Padding and truncation are left out: they are settings of the last call, not of the tokenizer.
    """
    tokenizer = loaded.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    state = [rules, sorted(tokenizer.all_special_ids), without_day(tokenizer.chat_template)]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
