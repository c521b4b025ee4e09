"""The ``config.json`` of a model on the Hugging Face hub, the only file that is downloaded of it.

Left out: weights and tokenizers (``models.loading``).
"""

from __future__ import annotations

import re
from pathlib import Path

from heliostat.config import ConfigError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``owner/model``."""
    return _HUB_ID.fullmatch(name) is not None


def download_config(hub_id: str) -> Path:
    """Download the ``config.json`` of a model, or find it in the local cache when the hub is out of reach.

    Returns:
        The file in the cache.

    Raises:
        ConfigError: the model is unknown, gated or without that file, or the hub is out of reach and the cache
            lacks it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, "config.json"))
    except errors.GatedRepoError as error:
        reason = "it is gated; accept its terms on the hub and log in with 'hf auth login'"
        raise _refusal(hub_id, reason) from error
    except errors.RepositoryNotFoundError as error:
        reason = "no such model, or a private one; check the spelling, or log in with 'hf auth login'"
        raise _refusal(hub_id, reason) from error
    except errors.LocalEntryNotFoundError as error:
        raise _refusal(hub_id, _out_of_reach(huggingface_hub.is_offline_mode())) from error
    except errors.EntryNotFoundError as error:
        raise _refusal(hub_id, "it has no config.json, so it is no model of transformers") from error
    except (OSError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        raise _refusal(hub_id, f"{type(error).__name__}, {first_line}") from error


def _out_of_reach(offline: bool) -> str:
    found = "HF_HUB_OFFLINE is set" if offline else "the hub is out of reach"
    return f"{found} and its config.json is not in the local cache; give a folder that holds one"


def _refusal(hub_id: str, reason: str) -> ConfigError:
    return ConfigError(f"'{hub_id}' is no folder here, and could not be read from the Hugging Face hub: {reason}")
