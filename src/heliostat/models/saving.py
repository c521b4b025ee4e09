"""Write a model as a folder that plain transformers loads, and name weights and tokenizers by their content.

Left out: optimizer state and everything else a run needs to resume, and gathering sharded weights (both ``train``).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from heliostat.models.loaded import LoadedModel, without_progress_bars
from heliostat.models.lora import is_adapted, merged
from heliostat.storage import publishing


def save_model(loaded: LoadedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write weights (in the dtype they have), configuration and tokenizer; an earlier save in ``folder`` is replaced.

    A killed process leaves the earlier save or the new one, never a half (``storage.folders``).

    Args:
        weights: what to write in place of the model's own tensors, by their names in its state. Adapters are merged.

    Raises:
        ValueError: ``folder`` exists and holds something other than a saved model.
        OSError: the disk is full or not writable; an earlier save is untouched.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ValueError(f"will not replace '{folder}': it exists and holds no model")
    with publishing(folder) as partial:
        try:
            _write(loaded, partial, weights)
        except SafetensorError as error:  # its errors of the system are of no kind of the system's
            raise OSError(str(error)) from error


def _write(loaded: LoadedModel, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
    from transformers import GenerationConfig

    if is_adapted(loaded.model):
        weights = merged(loaded.model, loaded.model.state_dict() if weights is None else weights)
    with without_progress_bars():
        loaded.model.save_pretrained(folder, state_dict=weights)
    loaded.tokenizer.save_pretrained(folder)
    # Sampling habits that came with the original weights (top-p, penalties) describe another policy than the trained
    # one; what stays true is which ids begin, end and pad.
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=loaded.tokenizer.bos_token_id, eos_token_id=sorted(loaded.eos_ids), pad_token_id=loaded.pad_id
    ).save_pretrained(folder)


def model_fingerprint(loaded: LoadedModel) -> str:
    """SHA-256 of every weight's name, shape, dtype and bytes; equal exactly where the weights are bit for bit equal.

    Tied weights count once, under their first name, so the hash survives saving and loading.
    """
    digest = hashlib.sha256()
    tensors = {**dict(loaded.model.named_parameters()), **_saved_buffers(loaded)}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _saved_buffers(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    saved = loaded.model.state_dict()
    return {name: buffer for name, buffer in loaded.model.named_buffers() if name in saved}


def tokenizer_fingerprint(loaded: LoadedModel) -> str:
    """SHA-256 of what decides ids: the tokenizer's own serialisation, its special tokens and its chat template.

    Padding and truncation are left out: they are settings of the last call, not of the tokenizer.
    """
    tokenizer = loaded.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    state = [rules, sorted(tokenizer.all_special_ids), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
