"""Write a model as a folder that plain transformers loads.

Left out: optimizer state and the other state that a run resumes from, and gathering sharded weights (both ``train``).
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from heliostat.arguments import PathArg, as_path
from heliostat.models.loaded_model import LoadedModel, without_progress_bars
from heliostat.models.lora import is_adapted, merged, plain_name
from heliostat.models.prompts.chat_template import without_day
from heliostat.storage import MANIFEST, new_folder, publishing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAVED = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", MANIFEST),
    *("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.jinja", "*.model", "*.py"),
    *("adapter_config.json", "adapter_model.safetensors"),
)
"""Names of the files of a saved model or adapter."""
CARD = "README.md"
"""Name of the file that the hub shows as a model's card."""
CARD_MARK = "<!-- Written by Heliostat when it saved the model; another save replaces it. -->"
"""Line in every card of this package."""
CARD_HERE = 'name = "."  # this folder, or its id on the hub'
"""Line of a card's snippet that names the model; a published card names the repository."""


Check = Callable[[Path, Mapping[str, torch.Tensor]], None]
"""Looks at a folder before it takes its place, and at the tensors that were written to it."""


def save_model(
    loaded: LoadedModel, folder: PathArg, weights: Mapping[str, torch.Tensor] | None = None, check: Check | None = None
) -> None:
    """Save weights (in their dtype), configuration and tokenizer; an earlier save in ``folder`` is replaced.

    A killed process leaves the earlier save or the new one, never a half (``storage.folders``).

    Args:
        weights: tensors to write in place of the model's own, by their names in its state. Adapters are merged.
        check: raises if the written files are wrong; then ``folder`` is left unchanged.

    **Limits** A file that no save writes is never removed: if one is found, the earlier folder is kept next to the
    new one under another name, with a warning.

    Raises:
        ValueError: ``folder`` exists and holds something other than a saved model.
        OSError: the disk is full or not writable; an earlier save is untouched.
    """
    folder = as_path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ValueError(f"will not replace '{folder}': it exists and holds no model")
    with replacing(folder) as partial:
        written = plain_state(loaded.model, weights)
        _write(loaded, partial, written)
        if check is not None:
            check(partial, written)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it replaces ``folder`` unless an exception is raised.

    Raises:
        StorageError: the disk refused; an earlier folder is intact.
    """
    with publishing(folder) as partial:
        try:
            yield partial
        except SafetensorError as error:  # safetensors raises its own class for system errors
            raise OSError(str(error)) from error
        _spare_foreign(folder)


def _spare_foreign(folder: Path) -> None:
    """Keep a copy of a folder under another name if it holds files that no save wrote."""
    entries = list(folder.iterdir()) if folder.exists() else []
    if foreign := [entry.name for entry in entries if not _may_be_saved(entry)]:
        kept = new_folder(folder.with_name(f"{folder.name}-before-save"))
        shutil.copytree(folder, kept, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True)
        warnings.warn(
            f"{folder} held {foreign[0]!r}, which no save wrote; all that was there is in {kept}", stacklevel=5
        )


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _may_be_saved(entry: Path) -> bool:
    """Return whether a save may have written this file: a part of a model, or a card of this package."""
    if entry.name == CARD and entry.is_file():
        return CARD_MARK in entry.read_text(encoding="utf-8", errors="replace")
    return is_model_file(entry)


def is_model_file(entry: Path) -> bool:
    """Return whether any version of transformers or PEFT writes a file of this name for a model or adapter."""
    return entry.is_file() and any(entry.match(pattern) for pattern in _SAVED)


def plain_state(model: nn.Module, weights: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the state to save: every tensor under its plain name, with adapters merged."""
    weights = model.state_dict() if weights is None else weights
    return merged(model, weights) if is_adapted(model) else dict(weights)


def _write(loaded: LoadedModel, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    from transformers import GenerationConfig

    # Sampling habits that came with the original weights (top-p, penalties) describe another policy than the trained
    # one; the ids that begin, end and pad still apply.
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=loaded.tokenizer.bos_token_id, eos_token_id=sorted(loaded.eos_ids), pad_token_id=loaded.pad_id
    )
    model = loaded.model
    own, model.generation_config = model.generation_config, generation  # transformers refuses to write some of them
    code = vars(model.config).pop("auto_map", None)  # names files of code that was not run and is not copied
    try:
        with without_progress_bars(), _as_tied(model, weights):
            model.save_pretrained(folder, state_dict=dict(weights))  # deletes entries of its argument
    finally:
        model.generation_config = own
        if code is not None:
            model.config.auto_map = code
    in_use, loaded.tokenizer.chat_template = loaded.tokenizer.chat_template, without_day(loaded.tokenizer.chat_template)
    try:
        loaded.tokenizer.save_pretrained(folder)
    finally:
        loaded.tokenizer.chat_template = in_use
    generation.save_pretrained(folder)


@contextmanager
def _as_tied(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Set the configuration's tied-weights flag inside the block to match the tensors in ``weights``.

    An adapter on one of two tied layers makes them two weights; who reads a folder that says otherwise ties them again.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    names = [f"{plain_name(name)}.weight" for end in ends for name, module in model.named_modules() if module is end]
    states = [weights[name] for name in names if name in weights]
    apart = len(states) == 2 and not torch.equal(*states)
    configs = [model.config, model.config.get_text_config()] if apart else []
    said = [(config, config.tie_word_embeddings) for config in configs if hasattr(config, "tie_word_embeddings")]
    try:
        for config, _ in said:
            config.tie_word_embeddings = False
        yield
    finally:
        for config, tied in said:
            config.tie_word_embeddings = tied
