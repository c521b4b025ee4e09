"""Every command hands over exactly what was asked for.

The commands that load models are tested together with ``heliostat.api``, up to the functions of ``heliostat.train`` and
``heliostat.report`` that it calls; the others with their room replaced.
"""

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from heliostat.cli import main
from heliostat.cli.theory import read_measured
from heliostat.config import ConfigError, build_recipe, load_recipe
from heliostat.rollout import SamplingSettings
from heliostat.tasks import VerifierError
from heliostat.theory import MeasuredStep
from heliostat.tracking import METRICS
from heliostat.train.evaluation.evaluate import Comparison


def finished(folder, status="finished", code=0, reason=""):
    return SimpleNamespace(
        folder=folder,
        status=status,
        reason=reason,
        exit_code=code,
        is_main_process=True,
        before=None,
        after=None,
        findings=(),
    )


@pytest.fixture
def behind_api(within):
    """``behind_api(run_recipe=result)``: what the Python API calls, with pages recorded but not written."""

    def install(**results):
        return within("heliostat.api", **({"write_report": None} | results))

    return install


def test_train_resolves_the_recipe_and_says_where_things_are(behind_api, tmp_path, capsys):
    calls = behind_api(run_recipe=finished(tmp_path))
    assert main(["train", "--train.num_steps", "3", "demo", "--run", str(tmp_path / "r"), "--objective.tau=.5"]) == 0
    call, page = calls
    assert call.args == (load_recipe("demo", {"train.num_steps": 3, "objective.tau": 0.5}), tmp_path / "r", "demo")
    assert page.name == "write_report"
    assert page.args == ([tmp_path],)
    printed = capsys.readouterr().out
    assert f"run folder              {tmp_path}\n" in printed
    assert f"report                  {tmp_path / 'report.html'}\n" in printed


def test_train_watch_serves_the_page_of_the_folder_that_the_run_opens(behind_api, tmp_path, capsys):
    folder = tmp_path / "a run"

    def run_recipe(*args, opened, **options):
        folder.mkdir()
        opened(folder)
        return finished(folder)

    behind_api(run_recipe=run_recipe)
    assert main(["train", "demo", "--watch"]) == 0
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert re.fullmatch(r"watch: http://127\.0\.0\.1:\d+/", first)
    assert "watch:" not in rest


def test_watch_refuses_what_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a").touch()
    for argv, reason in (
        ([], "there are no runs in runs/; name the folder to watch, which need not exist yet"),
        (["notes"], "notes is not a run folder; heliostat runs notes lists the runs in it"),
        (["notes/a"], "notes/a is not a folder"),
    ):
        assert main(["watch", *argv]) == 2
        assert capsys.readouterr().err == f"heliostat: {reason}\n"


def test_train_with_a_file_names_the_run_after_it(behind_api, tmp_path):
    calls = behind_api(run_recipe=finished(tmp_path))
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "demo"\n')
    assert main(["train", str(recipe)]) == 0
    assert calls[0].args == (load_recipe("demo"), None, "mine")


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 130)])
def test_the_runs_exit_code_is_the_commands(behind_api, tmp_path, capsys, status, code):
    reason = "" if code == 0 else "three steps in a row were not finite"
    calls = behind_api(run_recipe=finished(tmp_path, status, code, reason))
    assert main(["train", "demo"]) == code
    assert calls[-1].name == "write_report", "a run that stopped early gets its page too"
    assert capsys.readouterr().err == (f"heliostat: {status}: {reason}\n" if reason else "")


def test_train_prints_what_was_won_and_shows_final_transcripts(behind_api, tmp_path, capsys):
    rows = [
        {"step": step, "phase": phase, "prompt": f"{phase} {step}", "completion": "[red]5[/red]", "answer": "5",
         "success": True}
        for step, phase in [(0, "before"), (9, "after"), (9, "after"), (9, "after"), (9, "after")]
    ]  # fmt: skip
    (tmp_path / "transcripts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = finished(tmp_path)
    result.before = SimpleNamespace(pass_at_1=0.25, ci95=(0.2, 0.31))
    result.after = SimpleNamespace(pass_at_1=0.875, ci95=(0.8, 0.9))
    behind_api(run_recipe=result)
    assert main(["train", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "before  25.0% [20.0%, 31.0%]" in printed
    assert "after   87.5% [80.0%, 90.0%]" in printed
    assert printed.count("[red]5[/red]") == printed.count("after 9") == 3, "model text is not markup"
    assert "before 0" not in printed
    assert str(tmp_path / "model") in printed


def test_sft_hands_over_its_rows(behind_api, tmp_path, capsys):
    calls = behind_api(run_sft=finished(tmp_path))
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    assert main(["sft", "demo", "--data", str(data), "--warm_start.num_steps", "2"]) == 0
    assert main(["sft", "demo"]) == 0
    recipe = load_recipe("demo", {"warm_start.num_steps": 2})
    assert [call.args for call in calls if call.name == "run_sft"] == [
        (recipe, data, None, "demo"),
        (load_recipe("demo"), None, None, "demo"),
    ]
    assert main(["sft", "demo", "--data", str(tmp_path / "absent.jsonl")]) == 2
    assert capsys.readouterr().err == f"heliostat: there is no data file {tmp_path / 'absent.jsonl'}\n"
    assert [call.name for call in calls] == ["run_sft", "write_report"] * 2


def evaluation(rate):
    return SimpleNamespace(
        pass_at_1=rate, ci95=(rate - 0.1, rate + 0.1), ks=[1, 2, 4], pass_at=lambda k: rate + k / 100, mean_reward=rate,
        greedy=None, results=[None] * 50, by_task=lambda: {"[a]": SimpleNamespace(**vars(evaluation_part(rate)))},
    )  # fmt: skip


def evaluation_part(rate):
    return SimpleNamespace(
        pass_at_1=rate, ci95=(rate - 0.1, rate + 0.1), pass_at=lambda k: rate + k / 100, mean_reward=rate, greedy=0.5,
        results=[None] * 50,
    )  # fmt: skip


def test_eval_prints_intervals_and_the_paired_difference(behind_api, tmp_path, capsys):
    pair = Comparison(0.3, (0.2, 0.4), num_problems=50, num_only_first=2, num_only_second=17)
    report = SimpleNamespace(
        models=("a", "b"),
        evaluations=(evaluation(0.2), evaluation(0.5)),
        comparison=pair,
        dtypes=("float32", "bfloat16"),
        to_json=lambda: '{"x": 1}',
    )
    calls = behind_api(run_eval=report)
    out = tmp_path / "numbers.json"
    arguments = ["--samples", "4", "--problems", "50", "--greedy", "--temperature", "0.5", "--top-p", "0.9"]
    assert main(["eval", "a", "b", "--recipe", "demo", *arguments, "--json", str(out), "--run.seed=3"]) == 0
    (call,) = calls
    assert call.args == (["a", "b"], load_recipe("demo", {"run.seed": 3}))
    assert call.options == {
        "num_problems": 50,
        "num_samples": 4,
        "greedy": True,
        "settings": SamplingSettings(temperature=0.5, top_p=0.9),
    }
    printed = capsys.readouterr().out
    assert "20.0% [10.0%, 30.0%]" in printed
    assert "pass@4" in printed
    assert "24.0%" in printed
    assert "[a]" in printed
    assert "+30.0% pass@1, 95% interval [+20.0%, +40.0%]: they differ" in printed
    assert "a solution from the second model only: 17; from the first only: 2" in printed
    assert json.loads(out.read_text()) == {"x": 1}


def test_eval_defaults_are_the_recipes(behind_api):
    calls = behind_api(
        run_eval=SimpleNamespace(models=("a",), evaluations=(evaluation(0.5),), comparison=None, dtypes=("float32",))
    )
    assert main(["eval", "a", "--recipe", "demo", "--rollout.temperature", "0.7"]) == 0
    (call,) = calls
    settings = SamplingSettings(temperature=0.7)
    assert call.options == {"num_problems": None, "num_samples": None, "greedy": False, "settings": settings}


def group(question, *texts):
    completions = [SimpleNamespace(token_ids=(1, 2), stop_reason="eos", text=text) for text in texts]
    prompt = SimpleNamespace(problem=SimpleNamespace(question=question))
    return SimpleNamespace(prompt=prompt, completions=completions, verdicts=())


def test_eval_takes_one_model_or_two(behind_api, capsys):
    calls = behind_api(run_eval=None)
    assert main(["eval", "a", "b", "c", "--recipe", "demo"]) == 2
    assert capsys.readouterr().err == "heliostat: an evaluation takes one model, or two to compare, not 3\n"
    assert calls == []


def test_an_evaluation_that_fails_is_one_sentence_and_exit_code_1(behind_api, monkeypatch, capsys):
    def fail(*args, **options):
        raise VerifierError("task 'sums', problem sums/1: a verifier raised KeyError")

    behind_api(run_eval=None)
    monkeypatch.setattr("heliostat.api.run_eval", fail)
    assert main(["eval", "tiny", "--recipe", "demo"]) == 1
    assert capsys.readouterr().err == "heliostat: task 'sums', problem sums/1: a verifier raised KeyError\n"


def test_sample_prints_completions_as_they_are(behind_api, capsys):
    calls = behind_api(run_sample=[group("1+1?", "[bold]2[/bold]", "3")])
    assert main(["sample", "tiny", "--prompt", "1+1?", "-n", "2", "--temperature", "0.5"]) == 0
    (call,) = calls
    assert call.args == ("tiny", build_recipe())
    assert call.options == {
        "prompt": "1+1?",
        "num_samples": 2,
        "settings": SamplingSettings(temperature=0.5),
    }
    printed = capsys.readouterr().out
    assert "1+1?" in printed
    assert "[bold]2[/bold]" in printed
    assert "2 tokens, eos" in printed


def test_sample_prints_trajectories_turn_by_turn(behind_api, capsys):
    from heliostat.train import SampledConversations
    from heliostat.train.evaluation.conversation import Utterance
    from heliostat.types import Group, Problem, Prompt
    from tests.unit.monitors.test_turns import trajectory

    sampled = SampledConversations(
        Group(Prompt(Problem("p", "maze", "?"), (1, 2)), (trajectory([5, 6], [7]),)),
        "key 37",
        (
            (
                Utterance("assistant", "[red]look", 2),
                Utterance("environment", "\x1b[2J", 2),
                Utterance("assistant", "7", 1, 1.0),
            ),
        ),
    )
    calls = behind_api(run_conversations=[sampled])
    arguments = ["--recipe", "demo", "--environment.name", "lookup"]
    assert main(["sample", "tiny", *arguments]) == 0
    assert calls[0].options["prompt"] is None
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line] == [
        "key 37",
        "--- 2 turns, 3 sampled tokens, environment_done",
        "assistant: 2 tokens",
        "[red]look",
        "environment: 2 tokens",
        "␛[2J",
        "assistant: 1 tokens, reward 1",
        "7",
    ]


def test_sample_takes_problems_and_settings_from_a_recipe(behind_api):
    calls = behind_api(run_sample=[])
    assert main(["sample", "tiny", "--recipe", "demo", "--rollout.temperature", "0.5"]) == 0
    (call,) = calls
    assert call.args == ("tiny", load_recipe("demo", {"rollout.temperature": 0.5}))
    assert call.options == {"prompt": None, "num_samples": 4, "settings": SamplingSettings(temperature=0.5)}


def test_sample_needs_something_to_complete(behind_api, capsys):
    calls = behind_api(run_sample=[])
    assert main(["sample", "tiny", "--rollout.temperature", "0.5"]) == 2
    assert capsys.readouterr().err == "heliostat: sample needs a prompt, or a recipe to take problems from\n"
    assert calls == []


def test_report_prints_the_page(room, tmp_path, capsys):
    calls = room("heliostat.report", write_report=lambda runs, output, by: output)
    (tmp_path / "a").mkdir()
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "a"), "-o", str(page), "--by", "flops"]) == 0
    assert calls[0].args == ([tmp_path / "a", tmp_path / "a"], page, "flops")
    assert capsys.readouterr().out == f"{page}\n"
    assert main(["report", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err == f"heliostat: there is no run folder {tmp_path / 'b'}\n"


def test_tasks_list_and_show(room, capsys):
    room("heliostat.tasks", list_tasks={"reasoning-gym/x": "about [x]"}, show_task=lambda name: f"shown {name}")
    assert main(["tasks", "list"]) == 0
    listed = capsys.readouterr().out
    assert "about [x]" in listed
    assert "reasoning-gym/x" in listed
    assert main(["tasks", "show", "reasoning-gym/x"]) == 0
    assert capsys.readouterr().out == "shown reasoning-gym/x\n"


@pytest.mark.parametrize(("hackable", "refused", "code"), [(False, (), 0), (True, (), 1), (False, ("an answer",), 1)])
def test_audit_exits_by_its_verdict(room, capsys, hackable, refused, code):
    report = SimpleNamespace(hackable=hackable, refused=refused, format=lambda: "the audit")
    calls = room("heliostat.tasks", load_task=lambda section, seed, is_judged: (section, seed), audit=report)
    arguments = ["--task.settings.max_terms", "3", "--seed", "7"]
    assert main(["tasks", "audit", "reasoning-gym/chain_sum", *arguments]) == code
    (section, seed) = calls[0].args
    assert (section.name, section.settings, seed) == ("reasoning-gym/chain_sum", {"settings": {"max_terms": 3}}, 7)
    assert calls[1].args == (calls[0].args,)
    assert capsys.readouterr().out == "the audit\n"


def test_audit_of_a_recipe_takes_its_tasks(room):
    calls = room(
        "heliostat.tasks", load_task=None, audit=SimpleNamespace(hackable=False, refused=(), format=lambda: "")
    )
    assert main(["tasks", "audit", "demo"]) == 0
    assert calls[0].args == (load_recipe("demo").task[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Guess", 0, "nothing speaks against training in it"),
        ("PaysPoliteness", 1, "return for nothing"),
        ("Unscored", 1, "no reward: no turn has a reward"),
        ("NoSuchName", 2, "has no function 'NoSuchName'"),
    ],
)
def test_audit_of_an_environment_exits_by_its_verdict(capsys, name, code, said):
    environment = f"tests.support.environments:{name}"
    settings = ["--environment.name", environment, "--environment.num_workers", "1", "--task.num_train", "2"]
    assert main(["tasks", "audit", "environment", *settings, "--environment.max_turns", "3"]) == code
    assert said in "".join(capsys.readouterr())


@pytest.mark.slow
def test_audit_of_an_environment_with_a_judge_leaves_exploits_out_in_one_line(capsys, tmp_path):
    recipe = tmp_path / "mute.toml"
    recipe.write_text(
        '[environment]\nname = "tests.support.environments:Mute"\nnum_workers = 1\n'
        '[task]\nname = "environment"\nnum_train = 2\nnum_heldout = 1\n'
        '[judge]\nname = "tests.support.own_parts:Length"\n'
    )
    assert main(["tasks", "audit", str(recipe)]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == (
        "the judge is not tried with known exploits, which are answers of one turn: it judges whole episodes"
    )


def test_theory_plot_prints_what_it_drew(room, capsys, tmp_path):
    calls = room("heliostat.theory", draw_all=lambda folder: [folder / "a.svg", folder / "b.svg"])
    assert main(["theory", "plot", str(tmp_path)]) == 0
    assert main(["theory", "plot"]) == 0
    assert [call.args for call in calls] == [(tmp_path,), (Path("theory"),)]
    assert capsys.readouterr().out == f"{tmp_path / 'a.svg'}\n{tmp_path / 'b.svg'}\ntheory/a.svg\ntheory/b.svg\n"


LINE = {"objective.tau": 0.2, "reward/success": 0.25, "policy/lambda_hat": 0.8, "policy/log_ratio_correct": 1.2}


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_theory_plot_reads_measured_steps_that_have_a_place_on_the_curves(tmp_path):
    whole = LINE | {"policy/log_ratio_incorrect": -1.4}
    path = written(tmp_path / "steps.jsonl", [whole, LINE, whole | {"reward/success": 1.0}])
    assert read_measured(path) == [MeasuredStep(0.2, 0.25, 0.8, 1.2, -1.4)]


def test_theory_plot_reads_a_run_with_its_temperature(tmp_path):
    (tmp_path / "recipe.toml").write_text('[objective]\nname = "pmd-mean"\ntau = 0.5\n')
    line = {"step": 1, **LINE, "policy/log_ratio_incorrect": -1.4}
    written(tmp_path / "metrics.jsonl", [line, line | {"step": 2}])
    assert read_measured(tmp_path) == [MeasuredStep(0.5, 0.25, 0.8, 1.2, -1.4)] * 2
    (tmp_path / "recipe.toml").write_text('[objective]\nname = "grpo"\n')
    with pytest.raises(ConfigError, match=r"exact curves are those of pmd-mean and kimi-k2; .* trained with 'grpo'"):
        read_measured(tmp_path)


def test_theory_plot_says_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ConfigError, match="neither a run folder nor a file of JSON lines"):
        read_measured(tmp_path / "absent")
    (tmp_path / "text").write_text("[1]\n")
    with pytest.raises(ConfigError, match="line 1: not a JSON object"):
        read_measured(tmp_path / "text")
    with pytest.raises(ConfigError, match="holds no step with"):
        read_measured(written(tmp_path / "steps.jsonl", [LINE]))


def test_theory_plot_draws_measured_steps_last(room, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("heliostat.cli.theory.read_measured", lambda path: [path])
    calls = room("heliostat.theory", draw_all=lambda folder: [], draw_measured=lambda steps, folder: folder / "m.svg")
    assert main(["theory", "plot", str(tmp_path), "--measured", "steps"]) == 0
    assert calls[-1].args == ([Path("steps")], tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'm.svg'}\n"


def test_recipes_are_listed_and_printed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-arithmetic" in listed
    assert main(["recipes", "demo"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].removeprefix("# ") in listed
    assert "[model]" in shown


def test_metrics_are_all_explained(capsys):
    assert main(["metrics"]) == 0
    printed = capsys.readouterr().out
    assert [key for key in METRICS if key not in printed] == []


def test_the_rooms_really_take_these_calls():
    """The stand-ins above accept anything; the real functions must accept the same arguments."""
    from heliostat import report, tasks, theory, train

    recipe, folder = load_recipe("demo"), Path("x")
    settings = SamplingSettings(temperature=1.0, top_p=1.0)
    for function, args, options in [
        (train.run_recipe, (recipe, None, "demo"), {}),
        (train.run_sft, (recipe, folder, None, "demo"), {}),
        (train.run_eval, (["a"], recipe), {"num_problems": 1, "num_samples": 1, "greedy": True, "settings": settings}),
        (train.run_sample, ("a", recipe), {"prompt": "x", "num_samples": 1, "settings": settings}),
        (report.write_report, ([folder],), {}),
        (report.write_report, ([folder], None), {}),
        (theory.draw_all, (folder,), {}),
        (theory.draw_measured, ([], folder), {}),
        (tasks.list_tasks, (), {}),
        (tasks.show_task, ("a",), {}),
        (tasks.load_task, (recipe.task[0], 0), {}),
        (tasks.audit, (None,), {}),
    ]:
        inspect.signature(function).bind(*args, **options)
    for attribute in ("folder", "status", "reason", "exit_code", "before", "after"):
        assert hasattr(train.RunResult, attribute)
    for attribute in ("models", "evaluations", "comparison", "to_json"):
        assert hasattr(train.EvalReport, attribute)
    for attribute in ("pass_at_1", "ci95", "ks", "pass_at", "mean_reward", "greedy", "results", "by_task"):
        assert hasattr(train.Evaluation, attribute)
    for attribute in ("hackable", "format"):
        assert hasattr(tasks.AuditReport, attribute)


def test_eval_refuses_to_write_over_a_file_of_another_kind_before_it_samples(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("heliostat.api.evaluate", lambda *args, **options: pytest.fail("it sampled"))
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    assert main(["eval", "a", "--recipe", "demo", "--json", str(tmp_path / "mine.json")]) == 2
    assert "mine.json exists and is not an evaluation of Heliostat" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == '{"mine": 1}'
