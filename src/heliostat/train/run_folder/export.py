"""Export of a run's model to folders that plain transformers and PEFT load; every export is read back and compared.

    try_export   a trial before training, with perturbed trainable weights, so that a lossy export fails at once
    export       the export after training

Left out: the contents of such a folder (``models.saving``, ``models.lora``) and its comparison
(``models.checks.saved_model``).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from heliostat.config import ConfigError
from heliostat.models import LoadedModel, save_model
from heliostat.models.checks.saved_model import SavedDiffers, check_adapter, check_saved, trainer_logits
from heliostat.models.checks.weight_perturbation import perturbed_weights
from heliostat.models.lora import held, is_adapted, perturbed_adapters, save_adapter
from heliostat.models.saving import CARD, replacing
from heliostat.storage.errors import is_full
from heliostat.train.distributed.fsdp import full_state_dict, unsharded
from heliostat.train.distributed.ranks import RankLost, Runtime
from heliostat.types import Prompt

NUM_PROMPTS = 4


class ExportError(RuntimeError):
    """The trained model could not be saved, or the saved model differs from it."""


@dataclass(frozen=True, slots=True)
class Cards:
    """The model cards of one export, as Markdown; empty: none."""

    model: str = ""
    adapter: str = ""


def export(
    loaded: LoadedModel,
    runtime: Runtime,
    folder: Path,
    prompts: Sequence[Prompt],
    adapter: Path | None = None,
    cards: Cards | None = None,
) -> None:
    """Save the model, adapters merged, and read it back; shards are gathered from all ranks, and the main rank writes.

    A folder appears under ``folder`` or ``adapter`` only after it was read back and gave the trainer's logits.

    Args:
        prompts: prompts of the run's task; the first few are compared.
        adapter: a folder for the adapters alone, if there are any.
        cards: published together with the weights; read on the main rank.

    Raises:
        ExportError: the model could not be written, or the model read back differs.
    """
    try:
        _export(loaded, runtime, folder, prompts, adapter, cards or Cards())
    except RankLost:
        raise
    except Exception as error:  # of any library: after hours of training, end with one sentence and an intact folder
        raise ExportError(
            f"the model could not be saved to {folder}: {_brief(error)}; the last checkpoint is complete, and the same "
            "command with the same --run tries again from there"
        ) from error


def try_export(
    loaded: LoadedModel, runtime: Runtime, folder: Path, prompts: Sequence[Prompt], resumes: bool = False
) -> None:
    """Try ``export`` with the untrained model, in a temporary folder below ``folder``.

    Args:
        resumes: whether the run was trained in an earlier session; disk and packages may have changed since.

    **Limits**: the model is unchanged afterwards, bit for bit.

    Raises:
        ConfigError: this model, with these adapters, cannot be saved here without loss.
    """
    trial = Path(tempfile.mkdtemp(prefix=".trial-", dir=folder)) if runtime.is_main else folder
    seed = runtime.rank if runtime.sharded else 0
    trained = [held(each) for each in loaded.model.parameters() if each.requires_grad]
    try:
        with perturbed_adapters(loaded.model, seed), perturbed_weights(trained, seed):
            _export(loaded, runtime, trial / "model", prompts, trial / "adapter", Cards())
    except RankLost:
        raise
    except Exception as error:  # as above
        way_out = (
            "leave layers out of lora.layers" if is_adapted(loaded.model) else "train adapters instead (lora.rank)"
        )
        if isinstance(error, OSError) or is_full(error):
            way_out = "free disk space"
        nothing = "nothing more" if resumes else "nothing"
        raise ConfigError(
            f"{nothing} was trained, since the model of this run could not be saved without loss: {_brief(error)}; "
            f"{way_out}, or set train.try_export = false to train anyway"
        ) from error
    finally:
        if runtime.is_main:
            shutil.rmtree(trial, ignore_errors=True)


def _export(
    loaded: LoadedModel,
    runtime: Runtime,
    folder: Path,
    prompts: Sequence[Prompt],
    adapter: Path | None,
    cards: Cards,
) -> None:
    ids = [prompt.context_ids for prompt in prompts[:NUM_PROMPTS]]
    with unsharded(loaded.model):
        logits = trainer_logits(loaded, ids)
    full_weights = full_state_dict(loaded.model)
    with runtime.raise_on_all_ranks():
        if not runtime.is_main:
            return
        weights = full_weights or loaded.model.state_dict()
        with ExitStack() as stack:
            partial_adapter = None
            if adapter is not None and is_adapted(loaded.model):
                partial_adapter = stack.enter_context(replacing(adapter))
                save_adapter(loaded.model, weights, partial_adapter)

            def check(partial: Path, written: Mapping[str, Tensor]) -> None:
                model = check_saved(loaded, partial, written, ids, logits)
                if partial_adapter is not None:
                    check_adapter(model, partial_adapter, weights, ids, logits)
                    _write_card(partial_adapter, cards.adapter)
                _write_card(partial, cards.model)

            save_model(loaded, folder, weights, check)


def _write_card(folder: Path, card: str) -> None:
    if card:
        (folder / CARD).write_text(card, encoding="utf-8")


def _brief(error: Exception) -> str:
    """Return one line about an error, with its type unless it is ``SavedDiffers``."""
    line = str(error).strip().split("\n")[0].rstrip(".")
    return line if isinstance(error, SavedDiffers) else f"{type(error).__name__}: {line}"
