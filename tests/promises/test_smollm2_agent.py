"""The recipe smollm2-agent: its problems, and one trial of it on the tiny model in chat format."""

import pytest

from heliostat.config import load_recipe
from heliostat.models import decode
from heliostat.research import open_experiment
from heliostat.tasks.environments.building import build, check, describe
from heliostat.train import run_recipe
from heliostat.train.checks.recipe import load_tasks
from tests.support import small

TINY = {
    "run.num_threads": 1,
    "model.path": "tiny",
    "model.chat": True,
    "model.settings": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "context_length": 256},
    "environment.max_tokens_per_turn": 40,  # its tokens are shorter
    "environment.max_tokens": 120,
    "task.num_train": 24,
    "task.num_heldout": 4,
    "rollout.prompts_per_step": 4,
    "rollout.group_size": 2,
    "eval.num_problems": 4,
    "eval.final_samples": 1,
}


def test_its_problems_are_answered_by_one_query():
    recipe = load_recipe("smollm2-agent", {"task.num_train": 20, "task.num_heldout": 20})
    (task,) = load_tasks(recipe)
    assert not {problem.problem_id for problem in task.train} & {problem.problem_id for problem in task.heldout}
    section = recipe.environment
    environment = build(check(describe(section.name, settings=section.settings)))()
    for problem in task.heldout:
        environment.reset({"prompt": problem.prompt}, problem.columns["seed"])
        assert environment.step(environment.oracle()).observation == problem.answer
        assert environment.step(environment.oracle()).reward == 1.0
    environment.close()
    assert section.max_turns == 2


@pytest.mark.slow
def test_it_asks_in_the_chat_format():
    with open_experiment("smollm2-agent", TINY) as experiment:
        (group, *_) = experiment.sample(experiment.problems(0, 2), seed=1)
        marked = experiment.loaded.tokenizer.decode(group.prompt.token_ids)
        system, question = experiment.recipe.model.system, group.prompt.problem.prompt
        for text in (f"system\n{system}", f"user\n{question}", "assistant\n"):
            assert text in marked
        assert decode(experiment.loaded, group.prompt.token_ids).count(question) == 1


@pytest.mark.slow
def test_the_tiny_model_goes_through_the_whole_recipe(tmp_path):
    brief = {"train.num_steps": 1, "train.try_export": False, "warm_start.lr": 1e-2, "audit.enabled": False}
    result = run_recipe(load_recipe("smollm2-agent", TINY | brief), tmp_path / "run")
    assert result.status == "finished", result.reason
    losses = [row["loss/sft"] for row in small.metrics(tmp_path / "run") if row["step"] <= 0]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
