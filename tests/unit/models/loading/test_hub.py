import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heliostat.config import ConfigError, LoraSection, ModelSection
from heliostat.models import load_model
from heliostat.models.loading import bfloat16_trial
from heliostat.models.loading.bfloat16_trial import native_bfloat16
from heliostat.models.loading.hub import resolve_dtype
from heliostat.models.lora import add_adapters, save_adapter
from tests.support.checkpoints import chat_tokenizer, load_float32, write_checkpoint

CPU = torch.device("cpu")


def refusal(path: Path | str, **settings: object) -> str:
    """The message of the ConfigError that loading ends with: one line, whatever was wrong."""
    with pytest.raises(ConfigError) as caught:
        load_model(ModelSection(path=str(path), **settings), 0, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path, checkpoint) -> Path:
    """A whole checkpoint that a test may break."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))


@pytest.fixture
def _no_weights_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("weights were read before the check")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_home_relative_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model(ModelSection(path="~/model"), 0, CPU).name == "~/model"


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c"])
def test_missing_folder(path: str):
    assert refusal(path) == f"model.path '{path}': no such folder"


def test_a_file_is_not_a_folder(folder: Path):
    assert "is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("path", ["tinny", "smollm2", "smollm2-135"])
def test_near_misses_of_built_in_names_fail_at_once(path: str):
    assert "did you mean" in refusal(path)


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal("no-one/has-this-model")
    assert "'no-one/has-this-model'" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "nor an existing folder" in message


@pytest.mark.usefixtures("_no_weights_read")
class TestBeforeWeightsAreRead:
    def test_no_config(self, folder: Path):
        (folder / "config.json").unlink()
        assert "no config.json" in refusal(folder)

    def test_broken_config(self, folder: Path):
        (folder / "config.json").write_text('{"model_type": "lla')
        assert str(folder) in refusal(folder)

    def test_unknown_architecture(self, folder: Path):
        edit_config(folder, model_type="warpdrive")
        message = refusal(folder)
        assert "warpdrive" in message
        assert "architecture" in message

    def test_code_that_comes_with_a_checkpoint_is_never_run(self, folder: Path):
        marker = folder / "ran"
        (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
        classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        edit_config(folder, model_type="warpdrive", auto_map=classes)
        assert "never run" in refusal(folder)
        assert not marker.exists()

    def test_encoder_decoder(self, tmp_path: Path):
        from transformers import T5Config

        T5Config(vocab_size=64, d_model=16, num_layers=1).save_pretrained(tmp_path)
        assert "is an encoder-decoder" in refusal(tmp_path)

    def test_not_a_language_model(self, tmp_path: Path):
        from transformers import ViTConfig

        ViTConfig().save_pretrained(tmp_path)
        assert "(vit) is not a causal language model" in refusal(tmp_path)

    def test_quantised(self, folder: Path):
        edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
        assert "is quantised" in refusal(folder)

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_no_tokenizer(self, family: str, tmp_path: Path, checkpoint):
        folder = Path(shutil.copytree(checkpoint(family), tmp_path / "model"))
        for path in folder.glob("tokenizer*"):
            path.unlink()
        assert "without a tokenizer" in refusal(folder)

    def test_broken_tokenizer(self, folder: Path):
        (folder / "tokenizer.json").write_text('{"version": ')
        assert "its tokenizer cannot be read" in refusal(folder)

    def test_settings_of_the_tiny_model(self, folder: Path):
        assert "built-in tiny model only" in refusal(folder, settings={"hidden_size": 64})


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(folder)


def test_pickled_weights_are_never_loaded(folder: Path):
    weights = load_float32(folder).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pickled weights are never loaded" in refusal(folder)


def test_truncated_weights(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "weights cannot be read" in refusal(folder)


def test_weights_of_another_shape(folder: Path):
    edit_config(folder, intermediate_size=48)
    assert "weights cannot be read" in refusal(folder)


def test_a_missing_weight_is_refused_not_made_up(folder: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
    assert name in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_embeddings(folder: Path):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([f"<extra_{index}>" for index in range(20)])
    tokenizer.save_pretrained(folder)
    assert "532 tokens but the model only 520 embeddings" in refusal(folder)


def test_every_end_of_sequence_that_is_declared_counts(folder: Path):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 77]}))
    loaded = load_float32(folder)
    assert loaded.eos_ids == {2, 77, loaded.turn_end_id}
    assert loaded.eos_id == 2


def test_without_any_end_of_sequence_it_is_refused(tmp_path: Path):
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    folder = write_checkpoint(tmp_path, "llama", tokenizer, eos_token_id=None)
    assert "no end-of-sequence token" in refusal(folder)


def test_padding_falls_back_to_the_end_of_sequence(tmp_path: Path):
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = None
    loaded = load_float32(write_checkpoint(tmp_path, "llama", tokenizer))
    assert loaded.pad_id == loaded.eos_id


def test_dtype_follows_capability(monkeypatch: pytest.MonkeyPatch, folder: Path):
    """A product is timed: on a processor with units float32 takes about twice as long, on one without a tenth."""
    for narrow, native in [(2.0, False), (0.9, False), (0.5, True)]:
        seconds = {torch.float32: 1.0, torch.bfloat16: narrow}
        monkeypatch.setattr(bfloat16_trial, "seconds_of_product", lambda device, dtype, seconds=seconds: seconds[dtype])
        native_bfloat16.cache_clear()
        assert native_bfloat16(CPU) == native
        expected = torch.bfloat16 if native else torch.float32
        assert resolve_dtype("auto", CPU) == expected
        assert load_model(ModelSection(path=str(folder)), 0, CPU).model.dtype == expected
    native_bfloat16.cache_clear()
    assert resolve_dtype("float32", CPU) == torch.float32
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16


def test_loading_draws_no_bars_and_leaves_the_setting_alone(folder: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    load_float32(folder)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TestWhatElseLiesInTheFolder:
    def adapter(self, folder: Path, base: Path) -> None:
        loaded = load_float32(base)
        add_adapters(loaded.model, LoraSection(rank=2), seed=0)
        save_adapter(loaded.model, loaded.model.state_dict(), folder)

    def test_an_adapter_beside_whole_weights(self, folder: Path, checkpoint, tmp_path: Path):
        self.adapter(tmp_path / "adapter", checkpoint("llama"))
        for file in (tmp_path / "adapter").iterdir():
            shutil.copy(file, folder)
        message = refusal(folder)
        assert "holds whole weights and an adapter (adapter_config.json)" in message
        assert "move the adapter's files away" in message

    def test_an_adapter_alone(self, checkpoint, tmp_path: Path):
        self.adapter(tmp_path / "adapter", checkpoint("llama"))
        assert "is an adapter (adapter_config.json) without the model it belongs to" in refusal(tmp_path / "adapter")

    def test_two_sets_of_weights(self, folder: Path):
        names = list(load_file(folder / "model.safetensors"))
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "holds two sets of weights" in refusal(folder)

    @pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
    def test_a_weight_that_would_start_at_random(self, folder: Path, name: str):
        edit_weights(folder, lambda tensors: tensors.pop(name))
        assert f"lacks 1 weights (first: {name}), which would start from random numbers" in refusal(folder)

    def test_a_weight_of_another_shape(self, folder: Path):
        edit_config(folder, intermediate_size=80)
        assert "its weights cannot be read" in refusal(folder)

    def test_weights_beyond_the_language_model_are_said(self, folder: Path):
        more = {"v_head.weight": torch.ones(1, 4), "vision_tower.patch.weight": torch.ones(4, 4)}
        edit_weights(folder, lambda tensors: tensors.update(more))
        with pytest.warns(
            UserWarning, match=r"2 of its stored weights have no place in LlamaForCausalLM \(first: v_head"
        ):
            load_float32(folder)

    def test_so_are_those_that_transformers_drops_without_a_word(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        from transformers import LlamaForCausalLM

        monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp\..*", r"attn\.bias"])
        more = {"mtp.0.fc.weight": torch.ones(4, 4), "model.layers.0.attn.bias": torch.ones(4)}
        edit_weights(folder, lambda tensors: tensors.update(more))
        with pytest.warns(UserWarning, match=r"1 of its stored weights have no place .* \(first: mtp\.0\.fc\.weight\)"):
            load_float32(folder)

    def test_a_whole_model_says_nothing(self, folder: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            load_float32(folder)


def test_a_generation_config_that_transformers_refuses(folder: Path):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": -3}))
    assert "cannot be read: `max_new_tokens` must be greater than 0" in refusal(folder)
