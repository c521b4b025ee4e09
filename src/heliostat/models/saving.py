"""Write a model as a folder that plain transformers loads, and name weights and tokenizers by their content.

Left out: optimizer state and everything else a run needs to resume, and gathering sharded weights (both ``train``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from heliostat.models.loaded import LoadedModel, without_progress_bars
from heliostat.models.lora import is_adapted, merged

_SAVED = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.jinja", "*.model", "*.py"),
)
"""Names of what transformers writes when it saves a model and a tokenizer."""


def save_model(loaded: LoadedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write weights (in the dtype they have), configuration and tokenizer; an earlier save in ``folder`` is replaced.

    The folder is written beside its final place and renamed into it, so a killed process leaves the earlier save, or
    the new one, or (for the instant between two renames) the earlier one under a ``.old-`` name, never a half.

    Args:
        weights: what to write in place of the model's own tensors, by their names in its state. Adapters are merged.

    **Limits** A file that no save writes is never removed: where one is found, the earlier folder is kept beside the
    new one under another name, with a warning.

    Raises:
        ValueError: ``folder`` exists and holds something other than a saved model.
        OSError: the disk is full or not writable; an earlier save is untouched.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ValueError(f"will not replace '{folder}': it exists and holds no model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(loaded, partial, weights)
        partial.chmod(0o755)  # mkdtemp makes private folders, safetensors private files
        for file in partial.iterdir():
            file.chmod(0o644)
        _swap_in(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _swap_in(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".old-{folder.name}-", dir=folder.parent))
    folder.replace(old)  # onto an empty folder, which the system allows
    partial.rename(folder)
    if foreign := [entry.name for entry in old.iterdir() if not _may_be_saved(entry)]:
        kept = Path(tempfile.mkdtemp(prefix=f"{folder.name}-before-", dir=folder.parent))
        old.replace(kept)
        warnings.warn(
            f"{folder} held {foreign[0]!r}, which no save wrote; all that was there is in {kept}", stacklevel=4
        )
        return
    shutil.rmtree(old)


def _may_be_saved(entry: Path) -> bool:
    """Whether a saved model has a file of such a name, whichever version of transformers wrote it."""
    return entry.is_file() and any(entry.match(pattern) for pattern in _SAVED)


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
