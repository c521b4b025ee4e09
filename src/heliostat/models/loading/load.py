"""Load the model that ``[model]`` of a recipe names.

Left out: moving a model between devices or ranks (``train``), and details of one kind of model (its own file).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from heliostat.config import ConfigError, ModelSection
from heliostat.models.loaded_model import SMOLLM2, TINY, LoadedModel
from heliostat.models.loading.hub import load_pretrained, refuse_settings
from heliostat.models.loading.smollm2 import load_smollm2
from heliostat.models.loading.tiny import load_tiny
from heliostat.models.prompts.chat_template import clock, uses_day, with_arguments, with_day
from heliostat.run_models import model_of

Loader = Callable[[ModelSection, int, torch.device], LoadedModel]

BUILT_IN: dict[str, Loader] = {TINY: load_tiny, SMOLLM2: load_smollm2}


def load_model(section: ModelSection, seed: int, device: torch.device | None = None) -> LoadedModel:
    """Load the model a recipe names.

    ``tiny`` and ``smollm2-135m`` are built in and win over folders of the same name (write ``./tiny`` for a folder).
    A run folder means the model that the run saved.

    A chat template gets the section's arguments, and keeps the time at which the model was loaded as its clock.

    Args:
        section: the recipe's model section.
        seed: of the tiny model's random weights; others do not use it.
        device: a CPU or CUDA device; default: the current CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: it cannot be loaded; the message says why and how to proceed.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_untried(device)
    loaded = BUILT_IN.get(section.path, _load_pretrained)(section, seed, device)
    loaded = with_arguments(loaded, section.chat_template_kwargs)
    return with_day(loaded, clock(loaded.tokenizer)) if uses_day(loaded.tokenizer.chat_template) else loaded


def _refuse_untried(device: torch.device) -> None:
    """Refuse a kind of device on which nothing was ever run, since results there could be wrong unnoticed.

    Raises:
        ConfigError: it is neither a CPU nor a CUDA device.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"Heliostat has not been run on device '{device}'; leave the device out, and the model is loaded on the CPU"
        )


def _load_pretrained(section: ModelSection, seed: int, device: torch.device) -> LoadedModel:
    refuse_settings(section)
    return load_pretrained(model_of(section.path), section.dtype, device)
