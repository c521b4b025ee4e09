"""The export is tried before training and leaves no trace, and nothing that is not the model is published."""

import errno

import pytest
import torch

from heliostat.config import ConfigError, LoraSection, ModelSection
from heliostat.models import load_model, lora
from heliostat.models.lora import add_adapters
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.run_folder.export import ExportError, export, try_export
from heliostat.types import Problem, Prompt
from tests.support.checkpoints import write_checkpoint
from tests.support.digests import weights_digest
from tests.support.nano import NANO

ALONE = Runtime(torch.device("cpu"))
PROMPTS = [Prompt(Problem(str(n), "t", ""), tuple(range(6, 6 + n))) for n in (3, 9, 40, 7, 5)]


@pytest.fixture(params=[0, 2], ids=["whole", "adapters"])
def loaded(request):
    loaded = load_model(ModelSection(path="tiny", settings=NANO), 0)
    if request.param:
        add_adapters(loaded.model, LoraSection(rank=request.param, layers=("q_proj", "embed_tokens")), seed=0)
    return loaded


def half_merged(monkeypatch, name):
    """A merge that forgets one weight, as a way of saving that nobody has thought of might."""
    right = lora.merged

    def wrong(model, weights):
        plain = right(model, weights)
        return plain | {f"{name}.weight": weights[f"{name}.base_layer.weight"]} if lora.is_adapted(model) else plain

    monkeypatch.setattr("heliostat.models.saving.merged", wrong)


@pytest.mark.slow
def test_a_trial_leaves_the_model_and_the_folder_as_they_were(loaded, tmp_path):
    before = weights_digest(loaded)
    try_export(loaded, ALONE, tmp_path, PROMPTS)
    assert weights_digest(loaded) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_merge_forgets_shows_before_training(loaded, tmp_path, monkeypatch):
    half_merged(monkeypatch, "model.embed_tokens")
    if not lora.is_adapted(loaded.model):
        try_export(loaded, ALONE, tmp_path, PROMPTS)
        return
    with pytest.raises(ConfigError) as caught:
        try_export(loaded, ALONE, tmp_path, PROMPTS)
    message = str(caught.value)
    assert message.startswith("nothing was trained, since the model of this run could not be saved without loss: ")
    assert "logits differ from the trainer's by" in message
    assert "leave layers out of lora.layers, or set train.try_export = false" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_was_published_before_stays_when_a_later_export_is_wrong(tmp_path, monkeypatch):
    loaded = load_model(ModelSection(path="tiny", settings=NANO), 0)
    add_adapters(loaded.model, LoraSection(rank=2), seed=0)
    export(loaded, ALONE, tmp_path / "model", PROMPTS, tmp_path / "adapter")
    weights, adapter = (
        (tmp_path / name).read_bytes() for name in ("model/model.safetensors", "adapter/adapter_model.safetensors")
    )
    with lora.perturbed_adapters(loaded.model, seed=0):
        half_merged(monkeypatch, "model.layers.0.mlp.down_proj")
        with pytest.raises(
            ExportError, match="the last checkpoint is complete, and the same command with the same --run"
        ):
            export(loaded, ALONE, tmp_path / "model", PROMPTS, tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]
    assert (tmp_path / "model/model.safetensors").read_bytes() == weights
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == adapter


def test_a_full_disk_is_said_with_its_way_out(loaded, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(loaded.model), "save_pretrained", full)
    with pytest.raises(
        ConfigError, match=r"No space left on device.*; free disk space, or set train\.try_export = false"
    ):
        try_export(loaded, ALONE, tmp_path, PROMPTS)
    with pytest.raises(ExportError, match=r"StorageError: .*No space left"):
        export(loaded, ALONE, tmp_path / "model", PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt2", "mamba"])
@pytest.mark.parametrize("layers", [(), "everything"], ids=["default", "everything"])
def test_families_pass_with_adapters_wherever_they_can_be(family, layers, dtype, tmp_path):
    base = write_checkpoint(tmp_path / "base", family, initializer_range=0.1)
    loaded = load_model(ModelSection(path=str(base), dtype=dtype), 0)
    if layers:
        layers = {
            "qwen3_moe": ("q_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"),
            "gpt2": ("c_attn", "c_proj", "wte", "wpe", "lm_head"),
            "mamba": ("in_proj", "embeddings", "lm_head"),
        }[family]
    add_adapters(loaded.model, LoraSection(rank=2, layers=layers), seed=0)
    try_export(loaded, ALONE, tmp_path, PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_weights_that_loading_overwrites_show_before_training(rank, tmp_path):
    """A loader that zeroes the padding row, which the tied head trains: it is right until the first step is made."""
    from tests.support.model_families import load_small

    loaded = load_small("youtu", tmp_path)
    if rank:
        add_adapters(loaded.model, LoraSection(rank=rank), seed=0)
        try_export(loaded, ALONE, tmp_path, PROMPTS)  # adapters leave that row alone
        return
    before = weights_digest(loaded)
    with pytest.raises(ConfigError, match=r"embed_tokens.weight comes back with other numbers; train adapters instead"):
        try_export(loaded, ALONE, tmp_path, PROMPTS)
    assert weights_digest(loaded) == before


@pytest.mark.slow
def test_weights_that_are_tied_only_on_the_way_show_before_training(tmp_path, monkeypatch):
    """Two weights with the same numbers, of which a way of saving keeps one."""
    loaded = load_model(ModelSection(path="tiny", settings=NANO), 0)
    layers = loaded.model.model.layers
    with torch.no_grad():
        layers[1].mlp.up_proj.weight.copy_(layers[0].mlp.up_proj.weight)
    name = "model.layers.{}.mlp.up_proj.weight"
    monkeypatch.setattr(
        "heliostat.models.saving.plain_state",
        lambda model, weights=None: dict(weights) | {name.format(1): weights[name.format(0)].clone()},
    )
    with pytest.raises(ConfigError, match="logits differ from the trainer's"):
        try_export(loaded, ALONE, tmp_path, PROMPTS)
