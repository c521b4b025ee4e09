import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model, save_model
from tests.support.checkpoints import load_float32
from tests.support.digests import tokenizer_digest, weights_digest

CPU = torch.device("cpu")
NANO = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture
def nano_model() -> LoadedModel:
    return load_model(ModelSection(settings=NANO), 0, CPU)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_configuration_says_what_generation_needs(nano_model: LoadedModel, tmp_path: Path):
    save_model(nano_model, tmp_path / "final")
    generation = json.loads((tmp_path / "final" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(nano_model.eos_ids)
    assert generation["pad_token_id"] == nano_model.pad_id
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


def test_no_path_of_this_machine_is_written(checkpoint, tmp_path: Path):
    source = checkpoint("llama")
    save_model(load_float32(source), tmp_path / "final")
    for path in (tmp_path / "final").glob("*.json"):
        assert str(source) not in path.read_text()


def test_dtype_is_kept(tmp_path: Path):
    loaded = load_model(ModelSection(settings=NANO, dtype="bfloat16"), 0, CPU)
    save_model(loaded, tmp_path / "final")
    again = load_model(ModelSection(path=str(tmp_path / "final"), dtype="bfloat16"), 0, CPU)
    assert weights_digest(again) == weights_digest(loaded)
    assert (tmp_path / "final" / "model.safetensors").stat().st_size < 2.5 * loaded.num_parameters


def test_saving_again_replaces_and_leaves_nothing_else(nano_model: LoadedModel, tmp_path: Path):
    folder = tmp_path / "deep" / "final"
    save_model(nano_model, folder)
    other = load_model(ModelSection(settings=NANO), 1, CPU)
    save_model(other, folder)
    assert weights_digest(load_float32(folder)) == weights_digest(other)
    assert names(tmp_path / "deep") == ["final"]
    assert folder.stat().st_mode & 0o755 == 0o755


def test_a_folder_that_holds_something_else_is_not_touched(nano_model: LoadedModel, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="will not replace"):
        save_model(nano_model, tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_full_disk_leaves_the_earlier_save(nano_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "final"
    save_model(nano_model, folder)
    other = load_model(ModelSection(settings=NANO), 1, CPU)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(other.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(other, folder)
    assert names(tmp_path) == ["final"]
    assert weights_digest(load_float32(folder)) == weights_digest(nano_model)


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from heliostat.config import ModelSection
from heliostat.models import load_model, save_model

loaded = load_model(ModelSection(settings={settings}), 1)
type(loaded.tokenizer).save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
save_model(loaded, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_killed_between_weights_and_tokenizer_leaves_the_earlier_save(nano_model, tmp_path: Path):
    folder = tmp_path / "final"
    save_model(nano_model, folder)
    script = KILLED_WHILE_SAVING.format(settings=NANO)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", script, str(folder)], env=environment)
    assert result.returncode == -signal.SIGKILL
    leftovers = [name for name in names(tmp_path) if name != "final"]
    assert leftovers == ["final.partial"]  # it did die half-way: the unfinished folder is there, under another name
    assert weights_digest(load_float32(folder)) == weights_digest(nano_model)
    save_model(nano_model, folder)
    assert names(tmp_path) == ["final"]


def test_fingerprint_sees_one_bit_and_the_dtype(nano_model: LoadedModel):
    before = weights_digest(nano_model)
    weight = nano_model.model.get_input_embeddings().weight
    with torch.no_grad():
        old = weight[3, 5].clone()
        weight[3, 5] = torch.nextafter(old, torch.tensor(torch.inf))
        assert weights_digest(nano_model) != before
        weight[3, 5] = old
    assert weights_digest(nano_model) == before
    nano_model.model.to(torch.bfloat16)
    assert weights_digest(nano_model) != before


def test_tokenizer_digest_sees_rules_and_template_but_not_the_last_call(nano_model: LoadedModel):
    before = tokenizer_digest(nano_model)
    nano_model.tokenizer(["1", "2 + 3"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(nano_model) == before
    nano_model.tokenizer.chat_template += " "
    changed = tokenizer_digest(nano_model)
    assert changed != before
    nano_model.tokenizer.add_tokens(["<think>"])
    assert tokenizer_digest(nano_model) not in (before, changed)


@pytest.mark.parametrize("habit", [{"num_beams": 1, "early_stopping": True}, {"temperature": 0.6, "do_sample": False}])
def test_sampling_habits_of_the_base_do_not_stop_a_save(nano_model: LoadedModel, tmp_path: Path, habit: dict):
    save_model(nano_model, tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | habit))
    loaded = load_float32(tmp_path / "base")
    kept = loaded.model.generation_config
    save_model(loaded, tmp_path / "final")
    assert loaded.model.generation_config is kept
    assert not habit.keys() & json.loads((tmp_path / "final" / "generation_config.json").read_text()).keys()


def test_code_of_the_base_that_was_never_run_is_not_named(nano_model: LoadedModel, tmp_path: Path):
    nano_model.model.config.auto_map = {"AutoModelForCausalLM": "modeling_theirs.Theirs"}
    save_model(nano_model, tmp_path / "final")
    assert "auto_map" not in json.loads((tmp_path / "final" / "config.json").read_text())
    assert nano_model.model.config.auto_map == {"AutoModelForCausalLM": "modeling_theirs.Theirs"}


def test_what_a_check_refuses_does_not_take_its_place(nano_model: LoadedModel, tmp_path: Path):
    folder = tmp_path / "final"
    save_model(nano_model, folder)
    other = load_model(ModelSection(settings=NANO), 1, CPU)

    def refuse(partial: Path, written: object) -> None:
        assert (partial / "model.safetensors").is_file()
        raise RuntimeError("not good")

    with pytest.raises(RuntimeError, match="not good"):
        save_model(other, folder, check=refuse)
    assert names(tmp_path) == ["final"]
    assert weights_digest(load_float32(folder)) == weights_digest(nano_model)


def test_a_file_that_no_save_writes_is_kept_when_the_model_is_replaced(tmp_path, tiny):
    save_model(tiny, tmp_path / "model")
    (tmp_path / "model" / "thesis.md").write_text("mine")
    with pytest.warns(UserWarning, match=r"held 'thesis.md', which no save wrote"):
        save_model(tiny, tmp_path / "model")
    assert not (tmp_path / "model" / "thesis.md").exists()
    assert [path.read_text() for path in tmp_path.glob("model-before-*/thesis.md")] == ["mine"]
    save_model(tiny, tmp_path / "model")
    assert len(list(tmp_path.iterdir())) == 2
