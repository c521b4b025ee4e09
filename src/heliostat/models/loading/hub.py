"""Load a causal language model from a local folder or the Hugging Face hub, after early checks.

Every check that needs only small files comes before the weights are read. Code that comes with a checkpoint is never
run, weights are safetensors only, and a local folder never causes a network request.

Left out: quantised checkpoints (they cannot be trained), encoder-decoder models, and adapters.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from heliostat.config import ConfigError, ModelSection, nearest
from heliostat.models.loaded_model import (
    BUILT_IN_NAMES,
    LoadedModel,
    assemble,
    context_length_of,
    without_progress_bars,
)
from heliostat.models.loading.bfloat16_trial import native_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Any of these makes a tokenizer; without one, transformers may quietly build an empty tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


def refuse_settings(section: ModelSection) -> None:
    """Refuse ``[model.settings]``, which only the tiny model has.

    Raises:
        ConfigError: there are any.
    """
    if section.settings:
        raise ConfigError(
            f"model.settings.{next(iter(section.settings))} shapes the built-in tiny model only; "
            f"model.path is '{section.path}'"
        )


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve a dtype name; ``auto`` is bfloat16 where that is faster, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def load_pretrained(path: str, dtype: str, device: torch.device, name: str = "") -> LoadedModel:
    """Load a model from a folder or by its hub id.

    Args:
        path: folder (anything that exists, or starts with ``.``, ``/`` or ``~``), else a hub id.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        name: name of the model; default ``path``.

    Raises:
        ConfigError: the folder or hub id cannot be read, or holds something other than a whole causal language model.
    """
    location, is_local = _locate(path)
    name = name or path
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": is_local}
    if is_local:
        _check_files(Path(location), name)
    config = _read_config(location, is_local, name, options)
    _check_architecture(config, name)
    tokenizer = _read_tokenizer(location, is_local, name, options)
    model = _read_weights(location, is_local, name, options | {"dtype": resolve_dtype(dtype, device)})
    cast(nn.Module, model).to(device)
    return assemble(model, tokenizer, name)


def read_classifier(
    path: str, dtype: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """Load a model for sequence classification from a folder or by its hub id.

    Returns:
        The model on the device and in evaluation mode, its tokenizer, and its context length in tokens.

    Raises:
        ConfigError: the folder or hub id cannot be read, or holds no such model with all its weights.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    location, is_local = _locate(path)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": is_local}
    if is_local:
        _check_files(Path(location), path)
    config = _read_config(location, is_local, path, options)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(f"model '{path}' ({config.model_type}) has no form for sequence classification")
    tokenizer = _read_tokenizer(location, is_local, path, options)
    options |= {"dtype": resolve_dtype(dtype, device)}
    model = _read_weights(location, is_local, path, options, AutoModelForSequenceClassification)
    cast(nn.Module, model).to(device).eval().requires_grad_(False)
    return model, tokenizer, context_length_of(config.get_text_config(), tokenizer, path)


def read_tokenizer(path: str) -> tuple[PreTrainedTokenizerBase, int] | None:
    """Read a model's tokenizer and context length from a folder or the hub's local cache, without its weights.

    Returns:
        ``None`` if the model is on the hub and not in the cache; no request is sent.

    Raises:
        ConfigError: a folder holds no causal language model with a tokenizer.
    """
    location, is_local = _locate(path)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = _read_config(location, is_local, path, options)
    except ConfigError:
        if is_local:
            raise
        return None
    _check_architecture(config, path)
    tokenizer = _read_tokenizer(location, is_local, path, options)
    return tokenizer, context_length_of(config.get_text_config(), tokenizer, path)


def _locate(path: str) -> tuple[str, bool]:
    """Return the location to read from, and whether it is a local folder."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), True
    if folder.exists():
        raise ConfigError(f"model.path '{path}' is a file; give the folder that holds config.json and the weights")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"model.path '{path}': no such folder")
    # Old hub ids have no owner ("gpt2"), but a near miss of a built-in name is a typing error, not worth a request.
    if "/" not in path and (hint := nearest(path, BUILT_IN_NAMES)):
        raise ConfigError(f"model.path '{path}' is neither a built-in model nor an existing folder{hint}")
    return path, False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _unreachable(name: str, error: Exception) -> ConfigError:
    import huggingface_hub

    if huggingface_hub.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set and it is not in the local cache"
    else:
        reason = f"{_first_line(error)} (HF_HUB_OFFLINE=1 skips the attempts)"
    return ConfigError(
        f"model.path '{name}' is neither a built-in model ({', '.join(BUILT_IN_NAMES)}) nor an existing folder, and "
        f"could not be read from the Hugging Face hub: {reason}"
    )


def _check_files(folder: Path, name: str) -> None:
    """Check that the folder has one set of weights and no adapter on top of it."""
    if (folder / "adapter_config.json").is_file():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model '{name}' is an adapter (adapter_config.json) without the model it belongs to; "
                "merge it into its base (PEFT's merge_and_unload), and give the folder of the merged model"
            )
        raise ConfigError(
            f"model '{name}' holds whole weights and an adapter (adapter_config.json), which transformers would put "
            "on top of them; move the adapter's files away, or merge it (PEFT's merge_and_unload) and give that folder"
        )
    whole, cut = "model.safetensors", "model.safetensors.index.json"
    if (folder / whole).is_file() and (folder / cut).is_file():
        raise ConfigError(f"model '{name}' holds two sets of weights, {whole} and those of {cut}; move one away")


def _read_config(location: str, is_local: bool, name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if is_local and not (Path(location) / "config.json").is_file():
        raise ConfigError(f"model.path '{name}' holds no config.json; give a folder in Hugging Face format")
    try:
        return AutoConfig.from_pretrained(location, **options)
    except OSError as error:
        raise (
            ConfigError(f"model '{name}': {_first_line(error)}") if is_local else _unreachable(name, error)
        ) from error
    except ValueError as error:  # unknown model_type, or a model that needs its own code
        raise ConfigError(
            f"model '{name}' has an architecture that transformers does not know by itself, and code that comes with "
            f"a checkpoint is never run: {_first_line(error)}"
        ) from error


def _check_architecture(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        raise ConfigError(f"model '{name}' ({config.model_type}) is an encoder-decoder; give a decoder-only model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"model '{name}' ({config.model_type}) is not a causal language model of transformers")
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"model '{name}' is quantised and cannot be trained; give the original checkpoint")


def _read_tokenizer(location: str, is_local: bool, name: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    missing = ConfigError(f"model '{name}' comes without a tokenizer; save one into the same folder")
    if is_local and not any((Path(location) / file).is_file() for file in TOKENIZER_FILES):
        raise missing
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model '{name}': its tokenizer cannot be read: {_first_line(error)}") from error
    if not tokenizer.get_vocab():
        raise missing
    return tokenizer


def _read_weights(
    location: str, is_local: bool, name: str, options: dict[str, Any], kind: Any = None
) -> PreTrainedModel:
    """Read all weights of a model.

    Args:
        kind: transformers' class to load with; ``None``: that of causal language models.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if is_local and not any(Path(location).glob("*.safetensors")):
        raise ConfigError(f"model '{name}' holds no *.safetensors weights (pickled weights are never loaded)")
    if not is_local and _has_adapter(location):
        raise ConfigError(
            f"model '{name}' holds an adapter (adapter_config.json), which would be put on top of its weights; "
            "merge it (PEFT's merge_and_unload) and give the folder of the merged model"
        )
    try:
        with without_progress_bars():
            loading: Any = (kind or AutoModelForCausalLM).from_pretrained  # its annotation misses the second result
            model, report = loading(location, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if not is_local and isinstance(error, OSError):
            raise _unreachable(name, error) from error
        raise ConfigError(f"model '{name}': its weights cannot be read: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ConfigError(
            f"model '{name}' lacks {len(missing)} weights (first: {missing[0]}), which would start from random numbers"
        )
    if left_out := sorted({*report["unexpected_keys"], *_passed_over(model, location)}):
        warnings.warn(
            f"model '{name}': {len(left_out)} of its stored weights have no place in {type(model).__name__} (first: "
            f"{left_out[0]}), so they are neither trained nor saved; the original checkpoint keeps them",
            stacklevel=2,
        )
    weights: PreTrainedModel = model
    return weights


def _has_adapter(location: str) -> bool:
    from transformers.utils.peft_utils import find_adapter_config_file

    return find_adapter_config_file(location) is not None


def _passed_over(model: Any, location: str) -> list[str]:
    """Return stored weights that the model's class tells transformers to ignore: further heads, towers.

    What is not called a weight is left out: tables and masks that older versions stored.
    """
    if not (patterns := model._keys_to_ignore_on_load_unexpected):
        return []
    own, dropped = set(model.state_dict()), re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    names = _stored_names(location)
    return [name for name in names if name.endswith("weight") and name not in own and dropped.search(name)]


def _stored_names(location: str) -> list[str]:
    """Return the names of the tensors in a checkpoint, from its files' headers."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    def find(file: str) -> str | None:
        quiet = {"_raise_exceptions_for_missing_entries": False}
        return cached_file(location, file, local_files_only=True, **quiet)

    if index := find("model.safetensors.index.json"):
        return list(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    if file := find("model.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    return []
