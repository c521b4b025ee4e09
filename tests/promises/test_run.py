"""What a run promises: a better model that loads anywhere, a folder that explains it, the same curve every time."""

import json

import pytest
from safetensors.torch import load_file

from heliostat.config import ConfigError, ObjectiveSection
from heliostat.train import Display, run_eval, run_recipe, run_sample, run_sft
from tests.support import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_recipe(small.recipe(folder), folder / "run", "small"), folder


def test_the_folder_holds_everything(finished):
    result, _ = finished
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "recipe.toml", "versions.json", "metrics.jsonl", "evals.jsonl", "transcripts.jsonl", "checkpoints", "model",
        "summary.json",
    }  # fmt: skip
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 8
    for phase in ("before", "after"):
        low, high = summary[phase]["ci95"]
        assert low <= summary[phase]["pass@1"] <= high
    assert (result.folder / summary["model"] / "config.json").exists()
    phases = {"warm_start", "collection", "rollout", "verify", "teacher", "update", "eval", "total"}
    assert set(summary["seconds"]) == phases
    assert summary["flops"]["rollout"] > 0
    assert summary["tokens"] == sum(
        round(line["length/mean"] * 32) for line in small.metrics(result.folder) if line["step"] > 0
    )


def test_the_model_loads_with_plain_transformers(finished):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, _ = finished
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "model")
    ids = torch.tensor([tokenizer.encode("3 + 4 =")])
    out = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_same_seed_same_curve_and_another_seed_another(finished, tmp_path):
    result, folder = finished
    again = run_recipe(small.recipe(folder), tmp_path / "again", "small")
    assert small.metrics(again.folder) == small.metrics(result.folder)
    other = run_recipe(small.recipe(folder, run__seed=1), tmp_path / "other", "small")
    assert small.metrics(other.folder) != small.metrics(result.folder)


def test_the_log_is_complete_and_every_number_declared(finished):
    from heliostat.tracking import METRICS

    result, _ = finished
    lines = small.metrics(result.folder)
    assert [line["step"] for line in lines] == [*range(-59, 1), *range(1, 9)]
    assert all(key in METRICS for line in lines for key in line if key != "step")
    trained = lines[60:]
    assert all(0 <= line["reward/mean"] <= 1 for line in trained)
    gaps = [line["policy/sampler_gap"] for line in trained if "policy/sampler_gap" in line]
    assert gaps
    assert max(gaps) < 1e-4
    assert all(line["policy/mean_ratio"] > 0 for line in trained)
    assert [line["step"] for line in trained if "eval/pass@1" in line] == [4]
    raw = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in raw if "time/eval" in line] == [4]


def test_a_finished_run_is_not_run_again(finished):
    result, folder = finished
    before = (result.folder / "metrics.jsonl").read_bytes()
    again = run_recipe(small.recipe(folder), result.folder, "small")
    assert again.status == "finished"
    assert (result.folder / "metrics.jsonl").read_bytes() == before
    assert again.after == result.after


def test_eval_compares_two_models_on_the_same_problems(finished):
    result, folder = finished
    report = run_eval([str(result.folder / "model"), "tiny"], small.recipe(folder), num_problems=10, num_samples=2)
    assert report.comparison.num_problems == 10
    trained, untrained = report.evaluations
    assert trained.pass_at_1 >= untrained.pass_at_1
    assert json.loads(report.to_json())["comparison"]["num_problems"] == 10


def test_samples_to_look_at(finished):
    result, folder = finished
    groups = run_sample(str(result.folder / "model"), small.recipe(folder), prompt="3 + 4 =", num_samples=3)
    assert len(groups) == 1
    assert len(groups[0].completions) == 3


def test_sft_alone_lowers_the_loss_on_prompt_completion_rows(tmp_path):
    rows = [{"prompt": f"{a} + {b} =", "completion": str(a + b)} for a in range(10) for b in range(10)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_sft(small.recipe(tmp_path), data, tmp_path / "sft")
    losses = [line["loss/sft"] for line in small.metrics(result.folder)]
    assert len(losses) == 60
    assert losses[-1] < 0.6 * losses[0]
    assert (result.folder / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    evals = [json.loads(line) for line in (result.folder / "evals.jsonl").read_text().splitlines()]
    assert {(line["step"], line["phase"]) for line in evals} == {(-60, "before"), (0, "after")}


@pytest.mark.slow
def test_reward_rises_and_stays(tmp_path):
    """Two minutes of training on one-digit sums: clearly better at the end, by the final model, not the best one."""
    recipe = small.recipe(
        tmp_path,
        warm_start__num_steps=150,
        warm_start__stop_at=0.4,
        warm_start__eval_every=10,
        train__num_steps=100,
        train__updates_per_step=4,
        rollout__prompts_per_step=32,
        rollout__group_size=8,
        eval__every=0,
        eval__final_samples=8,
    )
    with Display() as display:
        result = run_recipe(recipe, tmp_path / "run", "small", display)
    trained = [line["reward/mean"] for line in small.metrics(result.folder) if line["step"] > 0]
    assert sum(trained[-10:]) / 10 > sum(trained[:10]) / 10 + 0.2
    assert trained[-1] > 0.7 * max(trained)


def test_the_reference_penalty_pulls_towards_where_training_began(tmp_path):
    def trained(name, kl_ref):
        recipe = small.recipe(tmp_path, optimizer__name="sgd", optimizer__lr=0.1, train__num_steps=3)
        recipe = recipe.model_copy(update={"objective": ObjectiveSection(name="reinforce", kl_ref=kl_ref)})
        result = run_recipe(recipe, tmp_path / name, name)
        assert result.status == "finished", result.reason
        return result.folder

    def distance(folder):
        final, first = (load_file(folder / part / "model.safetensors") for part in ("model", "reference"))
        return sum(float((final[key] - first[key]).square().sum()) for key in final)

    weak, strong = trained("weak", 1e-6), trained("strong", 10.0)
    assert 0 < distance(strong) < distance(weak)


def test_a_run_refused_before_it_began_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        run_recipe(small.recipe(tmp_path, model__path="./nowhere", model__settings={}), tmp_path / "run", "small")
    assert not (tmp_path / "run").exists()


def test_sft_without_steps_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"warm_start\.num_steps is 0"):
        run_sft(small.recipe(tmp_path, warm_start__num_steps=0), None, tmp_path / "sft")
