"""``eval --with lm-eval``: the calls that lm-evaluation-harness gets, its results, and its absence in one sentence."""

import importlib.util
import inspect
import json
import sys
import types

import pytest

from heliostat.cli import main
from heliostat.config import ModelSection
from heliostat.models import load_model
from heliostat.models.saving import save_model
from tests.support.nano import NANO

RESULTS = {
    "results": {"sums": {"alias": "sums", "sample_len": 3, "acc,none": 0.75, "acc_stderr,none": 0.0625}},
    "n-samples": {"sums": {"original": 100, "effective": 3}},
    "lm_eval_version": "0.4.13",
}


class HFLM:
    """A stand-in with the parameters that are used of the real one."""

    def __init__(self, pretrained, tokenizer=None, batch_size=1):
        self.model, self.tokenizer = pretrained, tokenizer


class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path, self.all_tasks = include_path, ["hellaswag", "sums"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("a model")
    save_model(load_model(ModelSection(path="tiny", settings=NANO), 0), path / "model")
    return path / "model"


@pytest.fixture
def harness(monkeypatch):
    """The calls of ``simple_evaluate``, each as its keyword arguments."""
    calls = []

    def simple_evaluate(model, tasks=None, limit=None, log_samples=True, apply_chat_template=False, task_manager=None):
        calls.append(locals() | {"calls": None})
        return RESULTS

    package, models, tasks = (types.ModuleType(f"lm_eval{part}") for part in ("", ".models.huggingface", ".tasks"))
    package.simple_evaluate, models.HFLM, tasks.TaskManager = simple_evaluate, HFLM, TaskManager
    package.__spec__ = types.SimpleNamespace(name="lm_eval")
    for module in (package, models, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_the_harness_gets_the_loaded_model_and_its_results_are_kept(harness, folder, tmp_path, capsys):
    file = tmp_path / "results" / "out.json"
    asked = ["eval", str(folder), "--with", "lm-eval", "sums", "hellaswag", "--include-path", str(tmp_path)]
    assert main([*asked, "--problems", "3", "--chat-template", "--json", str(file)]) == 0
    (call,) = harness
    assert (call["tasks"], call["limit"], call["apply_chat_template"]) == (["sums", "hellaswag"], 3, True)
    assert call["task_manager"].include_path == str(tmp_path)
    assert call["model"].model.config.hidden_size == NANO["hidden_size"]
    assert call["model"].tokenizer.chat_template
    row = next(line for line in capsys.readouterr().out.splitlines() if " sums " in line)
    assert row.split() == ["sums", "none", "acc", "0.7500", "0.0625", "3"]
    written = json.loads(file.read_text())
    assert written["heliostat_model"] == str(folder)
    assert {key: written[key] for key in RESULTS} == RESULTS
    assert main([*asked, "--json", str(file)]) == 0  # results of the same kind are replaced


def test_what_cannot_be_measured_is_one_sentence_before_a_model_loads(harness, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("heliostat.harness.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "notes.txt").write_text("mine")
    for options, sentence in (
        (["--with", "lm-eval", "helaswag"], "no task 'helaswag' in lm-eval (did you mean 'hellaswag'?)"),
        (["--with", "lm-eval"], "needs a task"),
        (["--with", "helm", "sums"], "takes lm-eval and its tasks, not 'helm'"),
        (["--with", "lm-eval", "sums", "--include-path", "nowhere"], "no folder nowhere"),
        (["--with", "lm-eval", "sums", "--greedy"], "--greedy has no effect"),
        (["--with", "lm-eval", "sums", "--task.num_heldout", "3"], "--task.num_heldout has no effect"),
        (["--with", "lm-eval", "sums", "--json", str(tmp_path / "notes.txt")], "is not an evaluation with lm-eval"),
        (["another", "--with", "lm-eval", "sums"], "one model at a time"),
        (["--include-path", "tasks"], "--include-path is for tasks of lm-evaluation-harness"),
        (["--chat-template"], "--chat-template is for tasks of lm-evaluation-harness"),
    ):
        assert main(["eval", "tiny", *options]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert harness == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failure_of_the_harness_is_one_sentence(harness, folder, capsys, monkeypatch):
    def missing_file(**_):
        raise FileNotFoundError("Unable to find 'tasks/sums.jsonl'")

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", missing_file)
    assert main(["eval", str(folder), "--with", "lm-eval", "sums"]) == 2
    assert capsys.readouterr().err == "heliostat: lm-eval failed on sums: Unable to find 'tasks/sums.jsonl'\n"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_the_extra_is_named(capsys):
    assert main(["eval", "tiny", "--with", "lm-eval", "sums"]) == 2
    assert capsys.readouterr().err == (
        "heliostat: --with lm-eval needs the package lm_eval: pip install 'heliostat[lm-eval]'\n"
    )


TASK = """task: local_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_the_real_harness_runs_a_local_task(folder, tmp_path, capsys):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM as RealHFLM
    from lm_eval.tasks import TaskManager as RealTaskManager

    assert {"model", "tasks", "limit", "log_samples", "apply_chat_template", "task_manager"} <= set(
        inspect.signature(lm_eval.simple_evaluate).parameters
    )
    for stand_in, real in ((HFLM, RealHFLM), (TaskManager, RealTaskManager)):
        assert set(inspect.signature(stand_in).parameters) <= set(inspect.signature(real).parameters)
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n} + 0 =", "answer": str(n)}) + "\n" for n in range(4)))
    (tmp_path / "sums.yaml").write_text(TASK.format(data=data))
    file = tmp_path / "out.json"
    asked = ["eval", str(folder), "--with", "lm-eval", "local_sums", "--include-path", str(tmp_path)]
    assert main([*asked, "--json", str(file)]) == 0
    assert "exact_match" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["n-samples"]["local_sums"]["effective"] == 4
    assert 0 <= written["results"]["local_sums"]["exact_match,none"] <= 1
