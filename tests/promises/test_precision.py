"""The promise: what a run promises does not depend on the type of its weights, nor on whether all of them are trained.

Other promises ask for the fixture ``weights`` where the type could matter; here are those about weights themselves.
"""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from heliostat.cli.tables import print_evaluations
from heliostat.config import dump_recipe, load_recipe
from heliostat.models import load_model
from heliostat.models.loading import hub
from heliostat.models.lora import add_adapters
from heliostat.train import run_eval, run_recipe, run_sft
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.model_bundle import set_up_model
from heliostat.train.run_folder.checkpoint_files import CheckpointError
from heliostat.train.run_folder.checkpoints import Checkpoints
from heliostat.train.trainer import Trainer
from heliostat.train.update.updater import Updater
from tests.support import small

ALONE = Runtime(torch.device("cpu"))
QUICK = {
    "train__num_steps": 4,
    "train__checkpoint_every": 1,
    "train__keep_checkpoints": 9,
    "eval__every": 0,
    "warm_start__num_steps": 20,
}
SLACK = {"float32": 1e-5, "bfloat16": 3e-2}
"""What merging adapters may change of the largest logit."""


def shaped(folder, **overrides):
    """The small recipe with a reward of which there always is some, so that every step moves the weights."""
    path = small.write_recipe(folder)
    path.write_text(small.shaped(path.read_text()))
    return load_recipe(str(path), {key.replace("__", "."): value for key, value in overrides.items()})


def stored(run_dir, step):
    """What a checkpoint keeps of the weights that are trained."""
    tensors = load_file(run_dir / "checkpoints" / f"step_{step:06d}" / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if ".lora_" in name or not small.weights.lora_rank}


def optimizer_state(run_dir, step):
    return torch.load(run_dir / "checkpoints" / f"step_{step:06d}" / "optimizer.pt", weights_only=True)


def float32_copies(state):
    """Of an optimizer's saved state, in the order of its parameters."""
    return state["masters"] if "masters" in state else [entry["master"] for entry in state["state"].values()]


def all_entries(tensors, dtype):
    """Sorted, since an optimizer numbers its parameters otherwise than a model names them."""
    return torch.cat([tensor.to(dtype).flatten() for tensor in tensors]).sort().values


def distance(one, other):
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def trained_tensors(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def all_tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in all_tensors(part)]


def same_folders(one, two, step):
    assert small.metrics(one) == small.metrics(two)
    for name in ("evals.jsonl", "transcripts.jsonl", "events.jsonl"):
        assert (one / name).exists() == (two / name).exists()
        assert not (one / name).exists() or (one / name).read_text() == (two / name).read_text()
    assert (one / "model" / "model.safetensors").read_bytes() == (two / "model" / "model.safetensors").read_bytes()
    ours, theirs = all_tensors(optimizer_state(one, step)), all_tensors(optimizer_state(two, step))
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """A run, and its model as the trainer had it at the end."""
    folder = tmp_path_factory.mktemp("precision")
    recipe, models = shaped(folder, **QUICK), []
    with pytest.MonkeyPatch.context() as patch:
        train = Trainer.train
        patch.setattr(Trainer, "train", lambda self: (train(self), models.append(self.context.bundle.loaded))[0])
        result = run_recipe(recipe, folder / "run", "small")
    assert result.status == "finished", result.reason
    return result, recipe, models[0]


def test_the_warm_start_is_kept_by_the_first_step(finished):
    """A step of training moves the weights by about its learning rate, from where the warm start left them."""
    result, recipe, _ = finished
    loaded = load_model(recipe.model, recipe.run.seed)
    if recipe.lora.rank:
        add_adapters(loaded.model, recipe.lora, recipe.run.seed)
    fresh = trained_tensors(loaded.model)
    warm, first = stored(result.folder, 0), stored(result.folder, 1)
    assert 0 < distance(warm, first) < 0.2 * distance(warm, fresh)


def test_the_evaluation_before_is_of_the_weights_that_training_starts_from(finished, tmp_path):
    """Of the checkpoint at step 0, sampled and judged by a run that starts there and makes no step."""
    result, recipe, _ = finished
    shutil.copytree(result.folder, tmp_path / "again")
    for step in range(1, 5):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step_{step:06d}")
    for name in ("summary.json", "evals.jsonl", "transcripts.jsonl"):
        (tmp_path / "again" / name).unlink()
    shutil.rmtree(tmp_path / "again" / "model")
    again = run_recipe(recipe, tmp_path / "again", "small")
    assert again.before == result.before
    assert again.after == result.after


def test_weights_have_their_type_and_everything_the_optimizer_keeps_is_float32(finished, weights):
    result, _, _ = finished
    dtype = getattr(torch, weights.dtype)
    for step in (0, 4):
        model, optimizer = stored(result.folder, step), optimizer_state(result.folder, step)
        assert {tensor.dtype for tensor in model.values()} == {dtype}
        assert {tensor.dtype for tensor in all_tensors(optimizer)} <= {torch.float32}
        if dtype == torch.bfloat16:
            copies = float32_copies(optimizer)
            assert len(copies) == len(model)
            assert torch.equal(all_entries(copies, dtype), all_entries(model.values(), dtype))
    assert {tensor.dtype for tensor in load_file(result.folder / "model" / "model.safetensors").values()} == {dtype}


def test_small_steps_add_up_beyond_the_rounding_of_the_weights(finished, weights):
    result, _, _ = finished
    if weights.dtype == "bfloat16":
        copies = float32_copies(optimizer_state(result.folder, 4))
        assert any(not torch.equal(copy, copy.bfloat16().float()) for copy in copies)


def test_what_is_saved_computes_what_was_trained(finished, weights):
    """Exactly, where nothing had to be merged; merged adapters are rounded once more to the type of the weights."""
    result, recipe, trained = finished
    again = load_model(recipe.model.model_copy(update={"path": str(result.folder / "model"), "settings": {}}), 0)
    ids = torch.tensor([[1, 5, 6, 7, 9, 12]])
    with torch.no_grad():
        ours, theirs = trained.model(input_ids=ids).logits.float(), again.model(input_ids=ids).logits.float()
    if not weights.lora_rank:
        assert torch.equal(ours, theirs)
    assert float((ours - theirs).abs().max() / ours.abs().max()) < SLACK[weights.dtype]


def test_the_saved_model_has_the_results_of_the_evaluation_after(finished, weights):
    result, recipe, _ = finished
    (evaluation,) = run_eval([str(result.folder / "model")], recipe).evaluations
    if weights.lora_rank and weights.dtype == "bfloat16":  # the merged weights are rounded
        assert evaluation.pass_at_1 == pytest.approx(result.after.pass_at_1, abs=0.15)
    else:
        assert evaluation.results == result.after.results


def test_an_evaluation_of_the_saved_model_has_its_type_and_says_so(finished, weights, monkeypatch, capsys):
    """Whatever ``auto`` would mean here for another model; what the recipe says wins."""
    result, recipe, _ = finished
    monkeypatch.setattr(hub, "native_bfloat16", lambda device: weights.dtype == "float32")
    section = recipe.model.model_copy(update={"dtype": "auto"})
    report = run_eval([str(result.folder / "model")], recipe.model_copy(update={"model": section}))
    assert report.dtypes == (weights.dtype,)
    if not weights.lora_rank:
        assert report.evaluations[0].results == result.after.results
    print_evaluations(report)
    assert f"weights in {weights.dtype}" in capsys.readouterr().out
    other = {"float32": "bfloat16", "bfloat16": "float32"}[weights.dtype]
    asked = recipe.model_copy(update={"model": section.model_copy(update={"dtype": other})})
    assert run_eval([str(result.folder / "model")], asked, num_problems=2).dtypes == (other,)


def test_no_result_reads_uninitialized_memory(finished, tmp_path, monkeypatch):
    """Memory that torch fills with NaN before anything is written there changes no bit, so a run leaves it unfilled."""
    result, recipe, _ = finished
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    with monkeypatch.context() as patch:
        patch.setattr(torch._C, "_set_deterministic_fill_uninitialized_memory", lambda filled: None)
        filled = run_recipe(recipe, tmp_path / "filled", "small")
        assert torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    assert filled.status == "finished", filled.reason
    same_folders(filled.folder, result.folder, 4)


@pytest.mark.parametrize("staleness", [0, 2])
def test_killed_in_either_phase_it_is_the_same_run(finished, tmp_path, dying, staleness):
    result, recipe, _ = finished
    whole = result.folder
    if staleness:
        recipe = shaped(tmp_path, **QUICK, rollout__max_staleness=staleness)
        whole = run_recipe(recipe, tmp_path / "whole", "small").folder
    for dying["left_warm"], dying["left"] in ((12, 0), (0, 1), (0, 2)):
        with pytest.raises(MemoryError):
            run_recipe(recipe, tmp_path / "run", "small")
    dying["left"] = 0
    assert run_recipe(recipe, tmp_path / "run", "small").status == "finished"
    same_folders(tmp_path / "run", whole, 4)


def test_a_rollback_restores_weights_and_copies(weights, tmp_path, monkeypatch):
    """Broken in the middle, the weights that the next update starts from are those of the checkpoint, bit for bit."""
    run, seen = Updater.run, []

    def watched(self, *args):
        optimizer = self.safe_step.optimizer
        state = [tensor.clone() for tensor in all_tensors(optimizer.state_dict())]
        seen.append((trained_tensors(self.policy.loaded.model), state))
        if len(seen) == 4:
            with torch.no_grad():
                next(iter(self.safe_step.parameters)).fill_(float("nan"))
        return run(self, *args)

    monkeypatch.setattr(Updater, "run", watched)
    result = run_recipe(shaped(tmp_path, **QUICK, guard__mode="act", guard__panel_every=0), tmp_path / "run")
    assert result.status == "finished", result.reason
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    (went,) = [event for event in events if event["action"] == "went back"]
    model, state = seen[4]
    for part, expected in (
        (model, seen[went["to"]][0]),
        (dict(enumerate(state)), dict(enumerate(seen[went["to"]][1]))),
    ):
        assert part.keys() == expected.keys()
        assert all(torch.equal(part[key], expected[key]) for key in part)


def test_the_reference_is_the_policy_that_training_starts_from(weights, tmp_path, monkeypatch):
    """In its type as well, whatever the machine would choose for a folder; exactly, where nothing was merged."""
    monkeypatch.setattr(hub, "native_bfloat16", lambda device: weights.dtype == "float32")
    text = small.write_recipe(tmp_path).read_text().replace('"pmd-mean"\ntau = 0.2', '"grpo"\nkl_ref = 0.01')
    if weights.dtype == "float32":  # which "auto" means for the tiny model, on every machine
        text = text.replace('dtype = "float32"', 'dtype = "auto"')
    (tmp_path / "small.toml").write_text(text)
    recipe = load_recipe(
        str(tmp_path / "small.toml"), {"train.num_steps": 1, "warm_start.num_steps": 20, "eval.every": 0}
    )
    train, seen = Trainer.train, []

    def noted(self):
        ids = torch.tensor([[1, 5, 6, 7, 9, 12]])
        with torch.no_grad():
            seen.extend(
                one.model(input_ids=ids).logits for one in (self.context.bundle.loaded, self.updater.reference.loaded)
            )
        train(self)

    monkeypatch.setattr(Trainer, "train", noted)
    result = run_recipe(recipe, tmp_path / "run", "small")
    assert result.status == "finished", result.reason
    policy, reference = seen
    assert policy.dtype == reference.dtype == getattr(torch, weights.dtype)
    slack = SLACK[weights.dtype] if weights.lora_rank else 0.0
    assert float((policy - reference).abs().max() / policy.abs().max()) <= slack


def test_supervised_training_alone_learns_and_saves(weights, tmp_path):
    result = run_sft(small.recipe(tmp_path), None, tmp_path / "sft")
    losses = [line["loss/sft"] for line in small.metrics(result.folder)]
    assert losses[-1] < (0.8 if weights.lora_rank else 0.6) * losses[0]
    assert result.before != result.after
    assert {tensor.dtype for tensor in load_file(result.folder / "model" / "model.safetensors").values()} == {
        getattr(torch, weights.dtype)
    }


def test_training_improves(weights, tmp_path):
    """After 20 steps, adapters' rewards lie between 0.06 and 0.9 from seed to seed; after 40 all are above 0.6."""
    recipe = shaped(
        tmp_path,
        warm_start__num_steps=0,
        train__num_steps=40 if weights.lora_rank else 20,
        eval__every=0,
        optimizer__lr=1e-2,
        optimizer__schedule="constant",
    )
    result = run_recipe(recipe, tmp_path / "run", "small")
    rewards = [line["reward/mean"] for line in small.metrics(result.folder) if line["step"] > 0]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3


# -- a machine that chooses another type -------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_keeps_its_type_on_a_machine_that_would_choose_another(tmp_path, monkeypatch, dying, first, then):
    small_model = run_sft(small.recipe(tmp_path, warm_start__num_steps=1), None, tmp_path / "start").folder / "model"
    recipe = shaped(tmp_path, model__path=str(small_model), model__dtype="auto", model__settings={}, **QUICK)
    monkeypatch.setattr(hub, "native_bfloat16", lambda device: first)
    whole = run_recipe(recipe, tmp_path / "whole", "small").folder
    dying["left"] = 2
    with pytest.raises(MemoryError):
        run_recipe(recipe, tmp_path / "run", "small")
    monkeypatch.setattr(hub, "native_bfloat16", lambda device: then)
    assert run_recipe(recipe, tmp_path / "run", "small").status == "finished"
    same_folders(tmp_path / "run", whole, 4)
    kept = {tensor.dtype for tensor in stored(tmp_path / "run", 4).values()}
    assert kept == {torch.bfloat16 if first else torch.float32}


def test_a_checkpoint_of_another_type_is_refused_in_a_sentence(finished, weights, tmp_path):
    result, recipe, _ = finished
    other = {"float32": "bfloat16", "bfloat16": "float32"}[weights.dtype]
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": other})})
    bundle = set_up_model(recipe, ALONE)
    optimizer = torch.optim.SGD(bundle.loaded.model.parameters(), lr=0.1)
    before = trained_tensors(bundle.loaded.model)
    with pytest.raises(CheckpointError, match=rf"holds {weights.dtype} weights.*model\.dtype = '{weights.dtype}'"):
        Checkpoints(result.folder / "checkpoints", 9, ALONE).load(4, bundle.loaded.model, optimizer)
    assert all(torch.equal(before[name], p) for name, p in bundle.loaded.model.named_parameters() if p.requires_grad)


# -- two ranks ---------------------------------------------------------------------------------------------------------

LAUNCHED = """
import sys
from pathlib import Path

from heliostat.config import dump_recipe, load_recipe
from heliostat.rollout.server.weights_fingerprint import weights_fingerprint
from heliostat.train import run_recipe
from heliostat.train.run_context import RunContext

log = RunContext.log


def noted(self, step, values):
    log(self, step, values)
    if not self.runtime.sharded:
        with Path(sys.argv[2] + f".{self.runtime.rank}").open("a") as file:
            file.write(f"{step} {weights_fingerprint(self.bundle.loaded.model)}\\n")


if __name__ == "__main__":
    RunContext.log = noted
    result = run_recipe(load_recipe(sys.argv[1], {"distributed.placement": sys.argv[3]}), Path(sys.argv[2]))
    sys.exit(result.exit_code)
"""


def two_ranks(recipe, run_dir, placement):
    script = run_dir.with_suffix(".py")
    script.write_text(LAUNCHED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *launch, str(recipe), str(run_dir), placement],
        env={**small.environment(), "PYTHONPATH": ":".join(filter(None, sys.path))},
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "placement"),
    [
        (small.Weights("bfloat16"), "replicated"),
        (small.Weights("bfloat16"), "sharded"),
        (small.Weights("bfloat16", lora_rank=4), "sharded"),
    ],
    ids=str,
    indirect=["weights"],
)
def test_two_ranks_train_in_bfloat16_from_one_warm_start(weights, placement, tmp_path):
    """To the rounding of sums that are taken in another order; continued by two bit for bit, and by one."""
    recipe = shaped(tmp_path, **QUICK)
    (tmp_path / "small.toml").write_text(dump_recipe(recipe))
    alone = run_recipe(recipe, tmp_path / "alone", "small").folder
    together = two_ranks(tmp_path / "small.toml", tmp_path / "together", placement)
    for mine, other in zip(small.metrics(together), small.metrics(alone), strict=True):
        for key, slack in (("loss/sft", 0.03), ("policy/entropy", 0.1)):  # they sample other tokens now and then
            assert (key in mine) == (key in other)
            assert mine.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=slack), (mine["step"], key)
    if placement == "replicated":
        marks = [(tmp_path / f"together.{rank}").read_text() for rank in (0, 1)]
        assert marks[0] == marks[1]
        assert len(set(marks[0].splitlines())) == 24, "every step moves the weights"
    for name in ("again", "one"):
        shutil.copytree(together, tmp_path / name)
        shutil.rmtree(tmp_path / name / "model")
        (tmp_path / name / "summary.json").unlink()
        for step in (3, 4):
            shutil.rmtree(tmp_path / name / "checkpoints" / f"step_{step:06d}")
    two_ranks(tmp_path / "small.toml", tmp_path / "again", placement)
    assert small.metrics(tmp_path / "again") == small.metrics(together)
    final = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("together", "again")]
    assert all(torch.equal(final[0][key], final[1][key]) for key in final[0])
    assert {tensor.dtype for tensor in final[0].values()} == {torch.bfloat16}
    assert run_recipe(recipe, tmp_path / "one", "small").status == "finished"
    whole, one = small.metrics(together)[-1], small.metrics(tmp_path / "one")[-1]
    assert one["policy/entropy"] == pytest.approx(whole["policy/entropy"], rel=0.1)
    copies = float32_copies(optimizer_state(tmp_path / "one", 4))
    model = stored(tmp_path / "one", 4)
    assert torch.equal(all_entries(copies, torch.bfloat16), all_entries(model.values(), torch.bfloat16))
