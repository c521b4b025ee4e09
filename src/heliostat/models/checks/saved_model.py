"""Read a saved model back as any user would, with plain transformers, and compare it with the one in memory.

    said = trainer_logits(loaded, prompts)                       by the trainer's own two halves
    check_saved(loaded, folder, written, prompts, said)          the same from the folder, or SavedDiffers
    check_adapter(...)                                           the same from the adapter on the model below it

Three things are compared: every tensor with the one that was written, logits at the end of real prompts, and the ids
and the template of the tokenizer. Logits are compared by the median over positions of ``|a - b| / |b|``, norms over the
vocabulary after subtracting the mean: a token that rounding routes to another expert is one position. The effect of
rounding is measured on the model itself if needed, by moving every weight by one unit in its last place.

Memory: one more copy of the model, on its device if 1.5 times its size is free, else on the CPU.

Left out: when to check (``train.run_folder.export``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heliostat.models.architecture_probes import probing
from heliostat.models.loaded_model import LoadedModel, without_progress_bars
from heliostat.models.lora import unadapted
from heliostat.models.prompts.chat_template import without_day

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[int]

MAX_TOKENS = 128
"""How much of a prompt is read."""
NUM_POSITIONS = 16
"""Tokens at the end of a prompt whose logits are compared."""
QUIET = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
"""Differences that rounding explains in any model, as a share, by dtype."""
NUM_NOISES, LOUD = 4.0, 0.7
"""Largest difference: this many times the effect of one unit in every weight, and at most this share."""


class SavedDiffers(RuntimeError):
    """A saved model differs from the one in memory; the message says how."""


@dataclass(frozen=True, slots=True)
class TrainerLogits:
    """The logits that a saved model must reproduce.

    Attributes:
        values: float32, at the end of every prompt, on the CPU.
        dtype: the compute dtype, which may differ from that of sharded weights.
    """

    values: tuple[Tensor, ...]
    dtype: torch.dtype


def trainer_logits(loaded: LoadedModel, prompts: Sequence[Ids]) -> TrainerLogits:
    """Compute logits by the two halves that training and sampling use."""
    with probing(loaded.model):
        rows = [_row(ids, loaded.model.device) for ids in prompts]
        hidden = [loaded.head.hidden(input_ids=row, use_cache=False)[0, -NUM_POSITIONS:] for row in rows]
        values = tuple(loaded.head.logits(states).cpu() for states in hidden)
    return TrainerLogits(values, hidden[0].dtype if hidden else loaded.model.dtype)


def check_saved(
    loaded: LoadedModel, folder: Path, written: Mapping[str, Tensor], prompts: Sequence[Ids], said: TrainerLogits
) -> PreTrainedModel:
    """Read the model in ``folder`` and compare it; returns the model read.

    Args:
        written: every tensor that should be in it, by its name in a plain model.
        said: ``trainer_logits`` of ``prompts``.

    Raises:
        SavedDiffers: it is not the same.
    """
    from transformers import AutoModelForCausalLM

    with without_progress_bars():
        loading: Any = AutoModelForCausalLM.from_pretrained
        model, report = loading(folder, output_loading_info=True, local_files_only=True)
    for what in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{what}_keys"])):
            raise SavedDiffers(f"{len(names)} weights come back {what} (first: {names[0]})")
    model = _placed(model, loaded.model.device)
    _compare_tensors(model, written)
    _compare_logits(model, prompts, said, "the saved model's")
    _compare_tokenizers(loaded, folder, prompts)
    plain: PreTrainedModel = model
    return plain


def check_adapter(
    model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor], prompts: Sequence[Ids], said: TrainerLogits
) -> None:
    """Load the adapter in ``folder`` onto its base weights with PEFT, and compare; consumes ``model``.

    Args:
        model: the result of ``check_saved``; its weights are replaced.
        weights: the adapted model's state.

    Raises:
        SavedDiffers: it is not the same.
    """
    from peft import PeftConfig, PeftModel

    whole = tuple(f"{name}." for name in PeftConfig.from_pretrained(str(folder)).modules_to_save or ())
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in unadapted(weights).items():
            own[name].copy_(torch.zeros_like(tensor) if name.startswith(whole) else tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the causes of PEFT's warnings are checked next
        adapted = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
    _compare_logits(adapted, prompts, said, "the saved adapter's")


def _placed(model: Any, device: torch.device) -> Any:
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    roomy = device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > 1.5 * size
    return model.to(device) if roomy else model


def _row(ids: Ids, device: torch.device) -> Tensor:
    return torch.tensor([list(ids)[-MAX_TOKENS:]], device=device)


def _compare_tensors(model: nn.Module, written: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    if odd := sorted(state.keys() ^ written.keys()):
        raise SavedDiffers(f"{len(odd)} weights have no counterpart in what was saved (first: {odd[0]})")
    for name, tensor in state.items():
        if not torch.equal(written[name].to(tensor), tensor):
            raise SavedDiffers(f"the weight {name} comes back with other numbers")


def _compare_logits(model: nn.Module, prompts: Sequence[Ids], said: TrainerLogits, whose: str) -> None:
    """Compare logits with the trainer's; the model may be rounded and jittered afterwards."""
    _round(model, said.dtype)
    read = _logits(model, prompts)
    if [each.shape for each in read] != [each.shape for each in said.values]:
        raise SavedDiffers(f"{whose} logits are of another shape than the trainer's")
    gap, bound = median_gap(read, said.values), QUIET[next(model.parameters()).dtype]
    if gap > bound:
        jitter(model)
        bound = min(max(bound, NUM_NOISES * median_gap(_logits(model, prompts), read)), LOUD)
    if not gap <= bound:
        raise SavedDiffers(
            f"{whose} logits differ from the trainer's by {gap:.2g} of their size, where rounding explains {bound:.2g}"
        )


def _logits(model: nn.Module, prompts: Sequence[Ids]) -> list[Tensor]:
    device = next(model.parameters()).device
    with probing(model):  # type: ignore[arg-type]
        outputs = (model(input_ids=_row(ids, device), use_cache=False).logits[0, -NUM_POSITIONS:] for ids in prompts)
        return [output.float().cpu() for output in outputs]


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights to the trainer's compute dtype, if that is lower than the dtype of the weights."""
    if dtype.itemsize >= next(model.parameters()).dtype.itemsize:
        return
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def jitter(model: nn.Module) -> None:
    """Move every weight up or down by about one unit in its last place, in place."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.is_floating_point():
                generator = torch.Generator(parameter.device).manual_seed(number)
                sign = torch.empty_like(parameter).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
                parameter.addcmul_(parameter, sign, value=torch.finfo(parameter.dtype).eps)


def median_gap(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the median over positions of ``|a - b| / |b|``, over entries finite in both; infinite if none are."""
    return float(torch.cat([_relative_gap(one, other) for one, other in zip(a, b, strict=True)]).median())


def _relative_gap(a: Tensor, b: Tensor) -> Tensor:
    usable = a.isfinite() & b.isfinite()
    count = usable.sum(-1, keepdim=True)
    a, b = (torch.where(usable, each, 0.0) for each in (a, b))
    a, b = (torch.where(usable, each - each.sum(-1, keepdim=True) / count, 0.0) for each in (a, b))
    gap = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-30)
    return torch.where(count[:, 0] > 0, gap, torch.inf)


def _compare_tokenizers(loaded: LoadedModel, folder: Path, prompts: Sequence[Ids]) -> None:
    from transformers import AutoTokenizer

    old, new = loaded.tokenizer, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for ids in prompts:
        text = old.decode(list(ids))
        if old.encode(text) != new.encode(text):
            raise SavedDiffers("the saved tokenizer gives other ids than the one in use")
    if without_day(old.chat_template) != without_day(new.chat_template):
        raise SavedDiffers("the saved tokenizer has another chat template than the one in use")
