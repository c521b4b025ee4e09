"""The promise: public functions take text, ``Path`` and any other path alike, and refuse one string for several."""

import inspect
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import heliostat
from heliostat.arguments import PathArg, as_path, as_text, paths, texts
from heliostat.config import is_recipe, load_recipe, recipe_text
from heliostat.linalg import BlockExchangeable, SparsityPattern, inverse_decomposition
from heliostat.optim import KroneckerProduct, KroneckerSum, Rank1NaturalGradient, RKalman
from heliostat.report.diagnosis import diagnose
from heliostat.rollout import DecodeLimits
from heliostat.run_models import run_folder_of
from heliostat.scaling import MODELS, asynchronous_s, read_shape, simulate, synchronous_s
from heliostat.theory import pmd_mean
from heliostat.traces import Bank, RowIssues, export_bank, read_rows
from heliostat.tracking import JsonlTracker, read_metrics, rewind
from heliostat.types import Problem
from tests.support.public_names import public

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "smollm2-arithmetic"
PLACES = re.compile(r"(?:.*_)?(?:path|folder|dir|dirs|file|bank|target|model|models)")
"""Names of parameters that hold a path."""
NOT_PLACES = {
    *(("Server.get", "path"), ("Server.post", "path")),
    *((f"{dialect}.completion_request", "model") for dialect in ("Vllm", "SGLang")),
}
"""Paths of a server's addresses, and the name under which it serves a model."""


class Place:
    """A path of another library."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


FORMS = {"str": str, "Path": Path, "PathLike": Place}


def narrow(function) -> list[str]:
    """List parameters that take one form of a path: annotated ``Path``, or a path by name and annotated ``str``."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = str(parameter.annotation)
        annotation = re.sub(
            r"\bCallable\[\[.*?\], \w+\]", "", annotation
        )  # a function of the user's, which is given one
        only_path = re.search(r"\bPath\b", annotation) and not re.search(r"\b(?:str|PathArg)\b", annotation)
        only_text = PLACES.fullmatch(name) and re.search(r"\bstr\b", annotation) and "Path" not in annotation
        if only_path or only_text:
            found.append(name)
    return found


def test_every_public_parameter_takes_a_path_in_any_form():
    functions = list(public())
    assert len(functions) > 250
    found = [(name, parameter) for name, function in functions for parameter in narrow(function)]
    assert sorted(set(found) - NOT_PLACES) == []


def test_a_parameter_that_takes_one_form_is_found():
    def takes(folder: Path, run_dir: "Path | None", model: str, other: str, either: "str | Path", path: "PathArg"): ...

    assert narrow(takes) == ["folder", "run_dir", "model"]


def bank_of(path):
    with Bank(path) as bank:
        return len(bank)


def exported(path):
    with Bank(":memory-like.sqlite") as bank:
        return export_bank(bank, path, RowIssues())


def tracked(path):
    tracker = JsonlTracker(path)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.log(2, {"reward/mean": 0.5})
    rewind(path, 1)
    return list(read_metrics(path))


def written(path):
    return heliostat.write_report(path, Place("page.html")).name


CALLS = {
    "load_recipe": (EXAMPLE / "recipe.toml", lambda path: load_recipe(path).model.path),
    "recipe_text": (EXAMPLE, lambda path: len(recipe_text(path))),
    "is_recipe": (EXAMPLE, is_recipe),
    "write_report": (EXAMPLE, written),
    "diagnose": (EXAMPLE, lambda path: diagnose(path).headline),
    "run_folder_of": (EXAMPLE, run_folder_of),
    "read_shape": (Path("config.json"), lambda path: read_shape(path, MODELS).num_layers),
    "Bank": (Path("a b.bank"), bank_of),
    "export_bank": (Path("exported"), exported),
    "traces.read_rows": (Path("rows.jsonl"), lambda path: len(list(read_rows(path, RowIssues())))),
    "JsonlTracker": (Path("metrics.jsonl"), tracked),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_path_in_any_form_gives_the_same(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    Path("config.json").write_text(str(shape | {"vocab_size": 9, "intermediate_size": 16}).replace("'", '"'))
    Path("rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": "2"}\n')
    path, call = CALLS[name]
    answers = []
    for form in FORMS.values():
        answers.append(call(form(path)))
        Path("metrics.jsonl").unlink(missing_ok=True)
    assert answers[0] is not None
    assert answers == answers[:1] * len(FORMS)


def test_one_run_or_any_iterable_of_runs_is_reported(tmp_path):
    for several in (EXAMPLE, [EXAMPLE], (EXAMPLE,), iter([str(EXAMPLE)]), {Place(EXAMPLE): 1}):
        assert heliostat.write_report(several, tmp_path).name == "report.html"


def test_the_conversions():
    assert as_path("~/x") == Path.home() / "x"
    assert as_text(Place("s3://bucket/x")) == "s3://bucket/x"
    assert paths("a") == ["a"]
    assert paths(path for path in ("a", Path("b"))) == ["a", Path("b")]
    assert texts((text for text in "ab"), "letters") == ["a", "b"]
    with pytest.raises(TypeError, match=re.escape("stop takes several strings, and got one: stop=['end']")):
        texts("end", "stop")


def test_one_string_in_place_of_several_is_refused(tmp_path):
    from heliostat.tasks import VerifierPool

    with Bank(tmp_path / "bank") as bank, pytest.raises(TypeError, match="problem_ids takes several strings"):
        bank.pick("sums/1", 1, tokenizer="t")
    with pytest.raises(TypeError, match="texts takes several strings"):
        VerifierPool([]).judge(Problem("1", "sums", "1 + 1 ="), "2")
    with pytest.raises(TypeError, match="tools is a list"):
        heliostat.post_train("demo", tools=print)
    with pytest.raises(heliostat.ConfigError, match="not the string"):
        load_recipe("demo", "--train.num_steps 3")


SEVERAL = {
    "list": list,
    "tuple": tuple,
    "array": np.asarray,
    "series": lambda values: pd.Series(values, index=range(5, 5 + len(values))),
    "generator": lambda values: (value for value in values),
}
SEQUENCES = {
    "pmd_mean": ([0.25, 0.75], lambda values: float(pmd_mean(values, [1.0, 0.0], 0.3).lam)),
    "simulate": ([1.0, 2.0, 3.0, 4.0], lambda values: simulate(values, 2, 2, 1.0, 1).update_s),
    "synchronous_s": ([1.0, 2.0, 3.0, 4.0], lambda values: synchronous_s(values, 2, 2, 1.0)),
    "asynchronous_s": ([1.0, 2.0, 3.0, 4.0], lambda values: asynchronous_s(values, 2, 2, 1.0)),
    "tree": ([-1, 0, 1], lambda values: SparsityPattern.tree(values).num_edges),
    "block_diagonal": ([2, 3], lambda values: SparsityPattern.block_diagonal(values).num_edges),
    "BlockExchangeable": ([2, 3], lambda values: repr(BlockExchangeable(values))),
    "a setting": (["a", "b"], lambda values: load_recipe("demo", {"rollout.stop": values}).rollout.stop),
    "overrides": (["--model.path", "x"], lambda values: load_recipe("demo", values).model.path),
    "stop": (["a", "b"], lambda values: DecodeLimits(4, stop=values).stop),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_several_values_in_any_form_give_the_same(name):
    values, call = SEQUENCES[name]
    answers = [call(form(values)) for form in SEVERAL.values()]
    assert answers == [call(values)] * len(SEVERAL)


def test_a_frame_is_a_matrix():
    frame = pd.DataFrame({"a": [2.0, 0.5, 0.1], "b": [0.5, 3.0, 0.2], "c": [0.1, 0.2, 1.0]})
    pattern = SparsityPattern.banded(3, 1)
    assert float(inverse_decomposition(frame, pattern).kl) == float(inverse_decomposition(frame.to_numpy(), pattern).kl)


def test_text_in_place_of_numbers_is_refused():
    with pytest.raises(ValueError, match="expected numbers, got text: 'ab'"):
        pmd_mean("ab", [1.0, 0.0], 0.3)


def test_a_number_of_an_array_library_is_a_setting():
    recipe = load_recipe("demo", {"train.num_steps": np.int64(3), "objective.tau": torch.tensor(0.5)})
    assert (recipe.train.num_steps, recipe.objective.settings["tau"]) == (3, 0.5)


@pytest.mark.parametrize("build", [KroneckerProduct, KroneckerSum, RKalman, partial(Rank1NaturalGradient, lr=0.1)])
def test_an_optimizer_takes_a_model_or_its_parameters(build):
    model = torch.nn.Linear(3, 2)
    for given in (model, model.parameters(), list(model.named_parameters())):
        groups = build(given).param_groups
        assert sum(tensor.numel() for group in groups for tensor in group["params"]) == 8
