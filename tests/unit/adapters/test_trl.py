"""``PMDTrainer`` on the installed TRL: real training steps of a small model, watched from inside."""

import os

import pytest
import torch

from heliostat.config import ConfigError

pytestmark = pytest.mark.peers
pytest.importorskip("trl")

from heliostat.adapters.trl import PMDConfig, PMDTrainer  # noqa: E402
from tests.support.nano import make_nano  # noqa: E402

QUIET = {
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
    "logging_steps": 1,
}
SMALL = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 6, "learning_rate": 1e-2}


def config(folder, **changes):
    return PMDConfig(output_dir=str(folder), **{**QUIET, **SMALL, **changes})


def even_length(completions, **columns):
    return [float(len(text) % 3) for text in completions]


class Watched(PMDTrainer):
    """Notes every anchor beside what it should be, and every micro-batch's loss."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        with torch.no_grad():
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, output["completion_ids"].size(1)
            )
        output["expected_anchor"] = logps
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"].bool()
        gaps = (inputs["old_per_token_logps"] - inputs["expected_anchor"])[mask].abs().tolist()
        self.notes.append((max(gaps, default=0.0), float(loss.detach())))
        return loss

    notes: list = []  # noqa: RUF012


def train(folder, reward=even_length, trainer=Watched, **changes):
    from datasets import Dataset

    loaded = make_nano()
    loaded.model.save_pretrained(folder / "start")  # where TRL finds the reference
    loaded.model.config._name_or_path = str(folder / "start")
    data = Dataset.from_dict({"prompt": [f"{number} + 1 =" for number in range(8)]})
    made = trainer(
        model=loaded.model,
        reward_funcs=reward,
        args=config(folder, max_steps=4, **changes),
        train_dataset=data,
        processing_class=loaded.tokenizer,
    )
    made.notes = []
    made.train()
    return made


@pytest.mark.parametrize(
    ("per_generation", "accumulation", "iterations"), [(1, 1, 1), (2, 2, 1), (2, 1, 1), (4, 2, 1), (2, 2, 2), (2, 1, 2)]
)
def test_the_anchor_is_always_the_policy_that_sampled(tmp_path, per_generation, accumulation, iterations):
    """Where TRL computes it, where it skips it, and when a batch is used again."""
    made = train(
        tmp_path,
        steps_per_generation=per_generation,
        gradient_accumulation_steps=accumulation,
        num_iterations=iterations,
    )
    assert len(made.notes) == 4 * accumulation
    assert max(gap for gap, _ in made.notes) < 1e-5
    ratios = [line["log_ratio/mean"] for line in made.state.log_history if "log_ratio/mean" in line]
    updates_per_generation = per_generation // accumulation * iterations
    at_anchor = [ratio == 0.0 for index, ratio in enumerate(ratios) if index % updates_per_generation == 0]
    after = [abs(ratio) > 1e-4 for index, ratio in enumerate(ratios) if index % updates_per_generation]
    assert all(at_anchor)
    assert all(after)
    assert len(after) == 4 - 4 // updates_per_generation


def final_weights(made):
    return torch.cat([p.detach().flatten() for p in made.accelerator.unwrap_model(made.model).parameters()])


@pytest.mark.parametrize("normalization", ["none", "token", "sequence"])
def test_the_step_does_not_depend_on_the_micro_batch(tmp_path, normalization):
    settings = {"objective_settings": {"length_normalization": normalization}, "optimizer": "sgd", "learning_rate": 0.1}
    whole = train(tmp_path, per_device_train_batch_size=8, steps_per_generation=2, **settings)
    parts = train(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, steps_per_generation=8, **settings
    )
    assert torch.allclose(final_weights(whole), final_weights(parts), atol=1e-5)
    assert not torch.allclose(final_weights(whole), torch.cat([p.flatten() for p in make_nano().model.parameters()]))


def test_advantages_are_the_objectives_and_are_what_the_table_shows(tmp_path):
    seen = []

    class Noted(Watched):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            seen.append((self._rewards_per_func.flatten(), output["advantages"], list(self._logs["advantages"])))
            return output

    train(tmp_path, trainer=Noted, objective="rloo")
    for rewards, advantages, shown in seen:
        expected = (rewards - rewards.mean()) * 4 / 3
        assert torch.allclose(advantages, expected, atol=1e-6)
        assert shown == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_completion_nobody_scored_takes_no_part(tmp_path):
    def sometimes(completions, **columns):
        return [None, 1.0, 0.0, 0.5]

    made = train(tmp_path, reward=sometimes)
    assert list(made._logs["advantages"]) == pytest.approx([0.0, 0.5, -0.5, 0.0])


def test_the_optimizer_is_ours(tmp_path):
    made = train(tmp_path, optimizer="sgd", optimizer_settings={"momentum": 0.5})
    inner = made.optimizer.optimizer
    assert isinstance(inner, torch.optim.SGD)
    assert inner.defaults["momentum"] == 0.5


def test_an_optimizer_that_needs_more_passes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="passes over the batch"):
        train(tmp_path, optimizer="rank1")


WITHOUT_FURTHER_PASSES = {
    "adamw": {},
    "sgd": {"momentum": 0.5},
    "eva": {"damping": 1.0},
    "ring": {"empirical": True, "statistics_every": 1},
    "kronecker-sum": {},
    "kronecker-product": {},
}
"""Optimizers that TRL's loop can drive, with settings."""


@pytest.mark.parametrize("name", WITHOUT_FURTHER_PASSES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_every_optimizer_that_needs_no_further_pass_moves_the_weights(tmp_path, name, checkpointing):
    settings = WITHOUT_FURTHER_PASSES[name]
    made = train(tmp_path, optimizer=name, optimizer_settings=settings, activation_checkpointing=checkpointing)
    moved = final_weights(made) - torch.cat([p.flatten() for p in make_nano().model.parameters()])
    assert torch.isfinite(moved).all()
    assert moved.abs().max() > 1e-4
    assert getattr(made.optimizer.optimizer, "num_skipped", 0) == 0
    if checkpointing:
        kept = train(tmp_path, optimizer=name, optimizer_settings=settings, activation_checkpointing=False)
        assert torch.allclose(final_weights(made), final_weights(kept), atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_FURTHER_PASSES)
def test_every_optimizer_works_in_trls_default_precision(tmp_path, name):
    made = train(tmp_path, optimizer=name, optimizer_settings=WITHOUT_FURTHER_PASSES[name], bf16=True)
    moved = final_weights(made) - torch.cat([p.flatten() for p in make_nano().model.parameters()])
    assert torch.isfinite(moved).all()
    assert moved.abs().max() > 1e-4
    assert getattr(made.optimizer.optimizer, "num_skipped", 0) == 0


def two_ranks(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    found = {}
    for name, settings in WITHOUT_FURTHER_PASSES.items():
        own = folder / f"{name}-{rank}"
        own.mkdir()
        Seen.seen = []
        made = train(own, trainer=Seen, optimizer=name, optimizer_settings=settings, gradient_accumulation_steps=2)
        assert made.accelerator.num_processes == 2
        found[name] = (final_weights(made), torch.tensor(made.seen))
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


class Seen(Watched):
    """Notes how many tokens of which sum this rank trains on."""

    seen: list = []  # noqa: RUF012

    def _compute_loss(self, model, inputs):
        self.seen.append(int(inputs["completion_ids"].sum()))
        return super()._compute_loss(model, inputs)


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(tmp_path):
    from tests.conformance.test_distributed_optimizers import free_port

    torch.multiprocessing.spawn(two_ranks, (free_port(), tmp_path), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in WITHOUT_FURTHER_PASSES:
        assert not torch.equal(one[name][1], other[name][1]), name  # each on rows of its own
        assert torch.equal(one[name][0], other[name][0]), name


def test_what_an_optimizer_of_ours_cannot_do_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="loss scale"):
        train(tmp_path, optimizer="eva", fp16=True)


def test_a_model_whose_own_settings_change_what_is_sampled_is_refused(tmp_path):
    class Repeats(Watched):
        def __init__(self, *, model, **rest):
            model.generation_config.no_repeat_ngram_size = 2
            super().__init__(model=model, **rest)

    with pytest.raises(ConfigError, match="no_repeat_ngram_size = 2"):
        train(tmp_path, trainer=Repeats)


def test_a_penalty_to_a_reference_makes_trl_hold_one(tmp_path):
    made = train(tmp_path, objective="grpo", objective_settings={"kl_ref": 0.1})
    assert made.beta == 0.1
    assert made.ref_model is not None
    assert all("ref_per_token_logps" in part for part in made._buffered_inputs)


def test_a_step_whose_completions_are_all_masked_does_nothing(tmp_path):
    made = train(tmp_path, mask_truncated_completions=True, max_completion_length=1, optimizer="sgd")
    masked = [loss for _, loss in made.notes]
    assert 0.0 in masked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_type": "grpo"}, "loss_type"),
        ({"epsilon": 0.3}, "epsilon"),
        ({"scale_rewards": "none"}, "scale_rewards"),
        ({"beta": 0.1}, "kl_ref"),
        ({"top_p": 0.9}, "top_p"),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, "multiple"),
        ({"objective": "pmd-meen"}, "pmd-mean"),
        ({"objective_settings": {"tua": 1.0}}, "objective.tau"),
        ({"optimizer": "adamv"}, "adamw"),
        ({"optimizer_settings": {"betas": (0.9, 0.9)}}, "optimizer"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_settings_that_would_be_ignored_or_cannot_work_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **changes)


def test_settings_survive_being_copied(tmp_path):
    import dataclasses

    made = config(tmp_path, objective="grpo", objective_settings={"kl_ref": 0.1})
    assert dataclasses.replace(made, steps_per_generation=None).beta == 0.1


def test_a_plain_grpo_config_is_refused(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig

    loaded = make_nano()
    plain = GRPOConfig(output_dir=str(tmp_path), num_generations=4, per_device_train_batch_size=4, **QUIET)
    with pytest.raises(ConfigError, match="PMDConfig"):
        PMDTrainer(
            model=loaded.model,
            reward_funcs=even_length,
            args=plain,
            train_dataset=Dataset.from_dict({"prompt": ["1 ="]}),
            processing_class=loaded.tokenizer,
        )


LATER = {
    **{"top_p": 0.5, "generation_kwargs": {"top_k": 3}, "loss_type": "grpo", "weight_decay": 0.5, "beta": 0.3},
    **{"optimizer": "nope", "objective_settings": {"tau": 9.0}, "neftune_noise_alpha": 5.0, "adam_beta1": 0.5},
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_set_after_the_configuration_was_made_is_refused(tmp_path, name):
    from datasets import Dataset

    loaded = make_nano()
    changed = config(tmp_path)
    setattr(changed, name, LATER[name])
    with pytest.raises(ConfigError, match=f"{name} = .* was set after PMDConfig was made"):
        PMDTrainer(
            model=loaded.model,
            reward_funcs=even_length,
            args=changed,
            train_dataset=Dataset.from_dict({"prompt": ["1"]}),
            processing_class=loaded.tokenizer,
        )


def test_one_configuration_makes_several_trainers(tmp_path):
    from datasets import Dataset

    loaded, shared = make_nano(), config(tmp_path, optimizer="eva", objective_settings={"tau": 0.3})
    for _ in range(2):
        PMDTrainer(
            model=loaded.model,
            reward_funcs=even_length,
            args=shared,
            train_dataset=Dataset.from_dict({"prompt": ["1"]}),
            processing_class=loaded.tokenizer,
        )


@pytest.mark.parametrize("name", ["objective_settings", "optimizer_settings"])
@pytest.mark.parametrize("value", ["tau=0.3", 3])
def test_settings_that_are_no_keys_with_values_are_refused(tmp_path, name, value):
    with pytest.raises(ConfigError, match=f"{name} must be keys with values"):
        config(tmp_path, optimizer="adamw", **{name: value})
