"""A run's card says what was measured and how to load it, is valid for the hub, and names no folder."""

import re

import pytest
import yaml

from heliostat.config import ModelSection, build_recipe
from heliostat.models import load_model
from heliostat.models.saving import CARD_MARK, save_model
from heliostat.train.evaluation.evaluate import Evaluation, ProblemResult
from heliostat.train.model_card.card import build_cards
from heliostat.train.model_card.facts import SMOLLM2_ID, CardFacts
from tests.support.nano import NANO

TINY = ModelSection(path="tiny", settings=NANO)


def evaluation(num_success, task="sums"):
    return Evaluation(tuple(ProblemResult(task, f"p{n}", 4, num_success, num_success / 4, True) for n in range(30)))


def cards(settings=None, **changes):
    facts = {"before": evaluation(1), "after": evaluation(3), "findings": (), "is_chat": False, "dtype": "float32"}
    return build_cards(CardFacts(**{**facts, "recipe": build_recipe(settings or {}), **changes}))


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_hub_model_is_the_base_of_its_card():
    both = cards({"model.path": "Qwen/Qwen2.5-0.5B", "lora.rank": 4})
    assert front_matter(both.model) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["heliostat", "reinforcement-learning", "pmd-mean"],
    }
    adapter = front_matter(both.adapter)
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")
    assert 'base = "Qwen/Qwen2.5-0.5B"' in both.adapter
    assert front_matter(cards({"model.path": "smollm2-135m"}).model)["base_model"] == SMOLLM2_ID
    assert "rounded to 4 bits" in cards({"model.path": "smollm2-135m"}).model


def test_no_folder_gets_in(tmp_path):
    folder = tmp_path / "my home" / "base model"
    folder.mkdir(parents=True)
    settings = {
        "model.path": str(folder),
        "model.system": f"Read {folder}/notes first.",
        "run.root": str(tmp_path),
        "lora.rank": 2,
        "task": [
            {
                "name": "file",
                "path": f"{tmp_path}/my home/sums.jsonl",
                "label": f"sums of {tmp_path}/my home/x y",
                "template": f"{{question}} {tmp_path}",
                "import_from": str(tmp_path),
                "verifiers": [{"name": f"{tmp_path}/rewards.py:length"}],
            }
        ],
        "traces.bank": str(tmp_path / "bank.db"),
        "prefix.name": "band",
    }
    task = f"sums of {tmp_path}/my home/x y"
    both = cards(settings, before=evaluation(1, task), after=evaluation(3, task), findings=("nothing-solved",))
    for card in (both.model, both.adapter):
        assert str(tmp_path) not in card
        assert "my home" not in card
        assert "base_model" not in front_matter(card)
        assert "`base model`" in card
        assert "local data, `sums.jsonl`" in card
        assert "`x y`" in card
        assert "`nothing-solved`" in card


def test_results_have_intervals_and_say_what_was_compared():
    card = cards({"warm_start.num_steps": 5}).model
    assert "| task | problems | after the warm start | after post-training |" in card
    assert f"| `sums` | 30 | {evaluation(1).described} | {evaluation(3).described} |" in card
    assert "Change on the same problems: +50.0%, 95% interval [" in card
    assert "The base model itself was not measured." in card
    same = cards(after=evaluation(1)).model
    assert "| base model | after post-training |" in same
    assert "so no change was shown" in same
    lost = cards(before=None).model
    assert "| unknown |" in lost
    assert "Change on the same problems" not in lost
    alone = cards({"train.num_steps": 0, "warm_start.num_steps": 5}).model
    assert "| base model | after supervised training |" in alone
    assert front_matter(alone)["tags"] == ["heliostat", "sft"]


@pytest.mark.parametrize("is_chat", [False, True])
def test_the_snippet_generates(tmp_path, monkeypatch, capsys, is_chat):
    save_model(load_model(TINY, 0), tmp_path / "model")
    snippet = re.search(r"```python\n(.*?)```", cards({"rollout.max_new_tokens": 3}, is_chat=is_chat).model, re.S)
    monkeypatch.chdir(tmp_path / "model")
    exec(snippet.group(1), {})
    assert capsys.readouterr().out.endswith("\n")


def test_a_card_of_ours_is_replaced_and_another_readme_is_kept(tmp_path):
    loaded = load_model(TINY, 0)
    save_model(loaded, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(f"{CARD_MARK}\n")
    save_model(loaded, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model" / "README.md").write_text("by hand\n")
    with pytest.warns(UserWarning, match=r"README\.md"):
        save_model(loaded, tmp_path / "model")
    assert (tmp_path / "model-before-save" / "README.md").read_text() == "by hand\n"
