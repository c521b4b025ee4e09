"""The research API against the trainer, and by itself."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from heliostat.config import ConfigError
from heliostat.models import encode_solution
from heliostat.research import open_experiment
from heliostat.rollout import completion_seed
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe, run_sft
from heliostat.types import Cut
from tests.support import small

QUICK = {
    "warm_start.num_steps": 0,
    "train.num_steps": 3,
    "eval.every": 0,
    "eval.final_samples": 1,
    "task.num_heldout": 4,
    "audit.enabled": False,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that begins with warm-started weights, so that some completions are right and the weights move.

    In float32 on every machine: the sampler's numbers are compared with the trainer's to more digits than bfloat16 has.
    """
    folder = tmp_path_factory.mktemp("research")
    warm = run_sft(small.recipe(folder, **{**QUICK, "warm_start.num_steps": 60}), run_dir=folder / "warm")
    start = {"model.path": str(warm.folder / "model"), "model.settings": {}, "model.dtype": "float32"}
    return small.recipe(folder, **QUICK, **start)


@pytest.fixture
def experiment(recipe):
    with open_experiment(recipe) as opened:
        yield opened


def trained(experiment):
    """Make the steps of a run of the same recipe."""
    recipe = experiment.recipe
    for index in range(recipe.train.num_steps):
        seed = completion_seed(recipe.run.seed, "step", index + 1)
        groups = experiment.sample(experiment.problems(index, recipe.rollout.prompts_per_step), seed=seed)
        step = experiment.step(groups, seed=seed)
    return step


@pytest.mark.slow
def test_steps_give_the_weights_metrics_and_flops_of_a_run_bit_for_bit(recipe, experiment, tmp_path):
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "finished", result.reason
    step = trained(experiment)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    ours = experiment.loaded.model.state_dict()
    assert saved
    assert all(torch.equal(ours[name], tensor) for name, tensor in saved.items())
    assert 0 < step.metrics["optim/head_grad_norm"] <= step.metrics["optim/grad_norm"]
    last = list(read_metrics(result.folder / "metrics.jsonl"))[-1]
    assert {"reward/mean", "loss/objective", "optim/grad_norm"} <= set(step.metrics)
    assert {key: last[key] for key in step.metrics if key != "optim/bad_steps"} == {
        key: value for key, value in step.metrics.items() if key != "optim/bad_steps"
    }
    assert experiment.ledger.spent == last["compute/total_flops"]
    after = experiment.evaluate(num_samples=1)
    assert after.pass_at_1 == result.after.pass_at_1
    assert after.greedy == result.after.greedy


@pytest.mark.slow
def test_scores_under_the_weights_that_sampled_are_the_samplers(experiment):
    groups = experiment.sample(experiment.problems(0, 3), 4, seed=5)
    for group, scored in zip(groups, experiment.score(groups), strict=True):
        for completion, logp in zip(group.completions, scored, strict=True):
            assert torch.allclose(logp, torch.from_numpy(completion.logp_gen), atol=1e-5)


@pytest.mark.slow
def test_a_restart_repeats_the_experiment_and_takes_other_settings(recipe, experiment):
    start = experiment.weights()
    first = trained(experiment).metrics
    spent = experiment.ledger.spent
    experiment.restart(start)
    assert experiment.num_updates == 0
    assert all(torch.equal(tensor, start[name]) for name, tensor in experiment.loaded.model.state_dict().items())
    assert trained(experiment).metrics == first
    assert experiment.ledger.spent == spent > 0
    experiment.restart(start, {"objective.tau": 0.05, "optimizer.lr": 1e-5})
    assert experiment.updater.objective.regression_tau == 0.05
    changed = trained(experiment).metrics
    experiment.restart(start)
    assert experiment.recipe == experiment.opened, "overrides do not add up"
    assert changed["optim/lr"] == pytest.approx(first["optim/lr"] * 1e-5 / recipe.optimizer.lr)
    with pytest.raises(ConfigError, match=r"\[model\] cannot change in a running experiment"):
        experiment.restart(start, {"model.path": "smollm2-135m"})


@pytest.mark.slow
def test_stale_groups_are_anchored_at_the_policy_that_sampled(experiment):
    groups = experiment.sample(experiment.problems(0, 4), seed=1)
    old = experiment.score(groups)
    experiment.step(groups, seed=1)
    moved = experiment.score(groups)
    assert any(
        not torch.equal(a, b) for one, two in zip(old, moved, strict=True) for a, b in zip(one, two, strict=True)
    )
    step = experiment.step(groups, seed=2, logp_old=old)
    for group, anchor in zip(step.batch.groups, old, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(group.logp_old, anchor, strict=True))


@pytest.mark.slow
def test_the_mirror_metrics_are_zero_before_the_weights_move(experiment):
    experiment.restart(experiment.weights(), {"optimizer.lr": 1e-30})
    step = experiment.step(experiment.sample(experiment.problems(0, 4), seed=1), seed=1)
    metrics = experiment.mirror_metrics(step)
    assert metrics["policy/lambda_hat"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["policy/chi_square"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_an_objective_with_a_reference_asks_for_one(recipe, experiment, tmp_path):
    from heliostat.models import save_model

    save_model(experiment.loaded, tmp_path / "reference")
    with open_experiment(recipe, {"objective.name": "grpo", "objective.kl_ref": 0.1}) as compared:
        groups = compared.sample(compared.problems(0, 2), seed=0)
        with pytest.raises(ConfigError, match="compares with a frozen reference policy; set"):
            compared.step(groups, seed=0)
        compared.updater.reference = compared.frozen(tmp_path / "reference")
        assert compared.step(groups, seed=0).report.scored.rows > 0


@pytest.mark.slow
def test_solutions_are_scored_as_the_sampler_scores_the_same_text(experiment):
    """A completion with its end token is what scoring its text as a solution gives."""
    groups = experiment.sample(experiment.problems(0, 8), 8, seed=5)
    sampled = [
        (dataclasses.replace(group.prompt.problem, solution=completion.text), completion)
        for group in groups
        for completion in group.completions
    ]
    loaded = experiment.loaded
    checked = 0
    for problem, completion in sampled:
        (logp,) = experiment.score_solutions([problem])
        if encode_solution(loaded, experiment.bundle.prompt(problem), problem.solution) == completion.token_ids:
            assert torch.allclose(logp, torch.from_numpy(completion.logp_gen), atol=1e-5)
            checked += 1
    assert checked > 5
    few = [problem for problem, _ in sampled[::8]]
    together, alone = experiment.score_solutions(few), [experiment.score_solutions([one])[0] for one in few]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True)), "in the order asked"
    assert experiment.ledger.spent == pytest.approx(experiment.ledger.flops["rollout"]), "a measurement is free"
    with pytest.raises(ValueError, match="has no solution to score"):
        experiment.score_solutions([dataclasses.replace(sampled[0][0], solution=None)])


def test_prompts_are_sampled_like_their_problems_and_prefixes_stay(experiment):
    problems = experiment.problems(0, 2)
    prompts = [experiment.bundle.prompt(problem) for problem in problems]
    one, other = experiment.sample(problems, 3, seed=7), experiment.sample(prompts, 3, seed=7)
    assert [[c.token_ids for c in group.completions] for group in one] == [
        [c.token_ids for c in group.completions] for group in other
    ]
    prefix = encode_solution(experiment.loaded, prompts[0], "1")[:1]
    (group,) = experiment.sample([dataclasses.replace(prompts[0], prefix_ids=prefix, cut=Cut("test", 1))], 3, seed=7)
    assert group.prompt.prefix_ids == prefix


def test_problems_of_another_seed_are_another_order_of_the_same(experiment):
    num = len(experiment.train)
    default, other = experiment.problems(0, num), experiment.problems(0, num, seed=experiment.recipe.run.seed + 1)
    assert default == experiment.problems(0, num, seed=experiment.recipe.run.seed)
    assert default != other
    assert {problem.problem_id for problem in default} == {problem.problem_id for problem in other}


@pytest.mark.slow
def test_given_advantages_take_the_place_of_the_objectives(experiment):
    start = experiment.weights()
    groups = experiment.sample(experiment.problems(0, 6), seed=1)

    def moved(advantages):
        experiment.restart(start, {"train.updates_per_step": 1})
        experiment.step(groups, seed=1, advantages=advantages)
        return {name: tensor.clone() for name, tensor in experiment.loaded.model.state_dict().items()}

    own = [group.advantages for group in experiment.updater.make_batch(groups).groups]
    assert any(one.any() for one in own)
    default = moved(None)
    assert all(torch.equal(default[name], tensor) for name, tensor in moved(own).items())
    assert all(torch.equal(start[name], tensor) for name, tensor in moved([0 * one for one in own]).items())
    assert any(not torch.equal(default[name], tensor) for name, tensor in moved([-one for one in own]).items())


def test_an_unshuffled_step_does_not_depend_on_its_seed(experiment):
    start = experiment.weights()
    groups = experiment.sample(experiment.problems(0, 8), seed=1)

    def weights_after(seed, shuffle):
        experiment.restart(start)
        experiment.step(groups, seed=seed, shuffle=shuffle)
        return torch.cat([tensor.flatten() for tensor in experiment.weights().values()])

    assert torch.equal(weights_after(0, False), weights_after(1, False))
    assert not torch.equal(weights_after(0, True), weights_after(1, True))


def test_rollout_metrics_are_those_of_the_rollouts_alone(experiment):
    step = experiment.step(experiment.sample(experiment.problems(0, 4), seed=1), seed=1)
    assert {"reward/mean", "policy/entropy", "length/mean"} <= set(step.rollout_metrics)
    assert not {"loss/objective", "optim/lr"} & set(step.rollout_metrics)
    assert step.rollout_metrics.items() <= step.metrics.items()
