"""Checks that every engine must pass, shipped or your own: ``heliostat check my_module:MyEngine``.

Each check builds the engine as a recipe does, on a very small model in float32, and raises ``Nonconforming`` with a
sentence about the difference that training would see. The model's own forward of each text says what is right.

Left out: its speed, and models of other architectures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heliostat.config import ModelSection, RolloutSection
from heliostat.conformance import Nonconforming, run_checks
from heliostat.models import LoadedModel, load_model
from heliostat.models.checks.reference_forward import reference_log_probs
from heliostat.rollout import engine_builder
from heliostat.rollout.completions import DecodeLimits, SamplingStopped
from heliostat.rollout.engine import Engine, RolloutCounts
from heliostat.rollout.own_engine import refuse_other_groups
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import SamplingSettings
from heliostat.types import Completion, Group, Problem, Prompt, StopReason

SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2},
    "init_std": 0.2,
}
MAX_NEW_TOKENS = 10
MAX_GAP = 1e-4
"""Largest accepted difference of a log-probability in nats, in float32."""

PROMPTS = tuple(
    Prompt(Problem(f"trial {index}", "trial", ""), tuple(range(20 + index, 20 + index + length)))
    for index, length in enumerate((5, 2, 7))
)


def trial_model(seed: int) -> LoadedModel:
    """Load a model of a few thousand random weights, none of whose ids ends a completion."""
    loaded = load_model(ModelSection(path="tiny", dtype="float32", settings=SHAPE), seed, torch.device("cpu"))
    loaded.model.eval()  # type: ignore[no-untyped-call]
    return dataclasses.replace(loaded, eos_ids=frozenset())


@dataclass(frozen=True, slots=True)
class Trial:
    """A section that names an engine, and the model that it is built on."""

    section: RolloutSection
    loaded: LoadedModel

    def engine(self, loaded: LoadedModel | None = None, stop: tuple[str, ...] = ()) -> Engine:
        """Build the engine under limits of 10 tokens and 4 rows."""
        limits = DecodeLimits(MAX_NEW_TOKENS, 4, stop)
        return engine_builder(self.section)(loaded or self.loaded, limits, self.section)


Check = Callable[[Trial], None]


def sample(engine: Engine, prompts: Sequence[Prompt] = PROMPTS, seed: int = 0, temperature: float = 1.0) -> list[Group]:
    """Sample three completions of each prompt."""
    return engine.sample(SampleRequest(prompts, 3, SamplingSettings(temperature), seed=seed, policy_step=7))


def groups_are_the_requested_ones(trial: Trial) -> None:
    """Check that each prompt gets its group in order, each completion its length, and ``on_group`` every group once."""
    landed: list[int] = []
    settings = SamplingSettings()
    request = SampleRequest(PROMPTS, 3, settings, seed=0, policy_step=7, on_group=lambda place, _: landed.append(place))
    groups = trial.engine().sample(request)
    refuse_other_groups(request, groups)
    for one in _completions(groups):
        if len(one.token_ids) != MAX_NEW_TOKENS or one.stop_reason is not StopReason.MAX_TOKENS:
            raise Nonconforming(
                f"a completion that nothing ends has {MAX_NEW_TOKENS} tokens and the reason max_tokens, got "
                f"{len(one.token_ids)} and {one.stop_reason}"
            )
    if sorted(landed) != list(range(len(PROMPTS))):
        raise Nonconforming(f"on_group must be called once for each group, was called for {landed}")


def log_probs_are_the_models_own(trial: Trial) -> None:
    """Check that the recorded log-probabilities are those of the model's forward, at the sampling temperature."""
    engine = trial.engine()
    for temperature in (1.0, 0.7):
        _refuse_gap(trial.loaded, sample(engine, temperature=temperature), temperature, "check ids and temperature")


def a_seed_decides_every_token(trial: Trial) -> None:
    """Check that the same seed samples the same tokens, another seed others, and the members of a group differ."""
    engine = trial.engine()
    first, again, other = (_ids(sample(engine, seed=seed)) for seed in (0, 0, 1))
    if first != again:
        raise Nonconforming("the same request sampled other tokens; draw from the request's seed alone")
    if first == other:
        raise Nonconforming("another seed sampled the same tokens; every random number must depend on request.seed")
    if any(len(set(group)) == 1 for group in first):
        raise Nonconforming("all members of a group are equal, so none could be better; give each its own stream")


def company_does_not_matter(trial: Trial) -> None:
    """Check that a prompt's completions do not depend on the other prompts of the request or on their order."""
    engine = trial.engine()
    together = _ids(sample(engine))
    for chosen in ([0], [2, 1]):
        if _ids(sample(engine, [PROMPTS[index] for index in chosen])) != [together[index] for index in chosen]:
            raise Nonconforming(
                "the completions of a prompt change with the other prompts of the request; seed each completion by its "
                "problem and its place in the group (completion_seed)"
            )


def stop_strings_end_completions(trial: Trial) -> None:
    """Check that a completion ends with the first token that completes a stop string, which its text leaves out."""
    free = _completions(sample(trial.engine()))
    stop = next(one.text[len(one.text) // 2] for one in free if len(one.text) > 1)
    for before, after in zip(free, _completions(sample(trial.engine(stop=(stop,)))), strict=True):
        ends = stop in before.text
        if after.token_ids != before.token_ids[: len(after.token_ids)]:
            raise Nonconforming("a stop string changed the tokens before it; only the end of a completion may differ")
        if stop in after.text or (after.stop_reason is StopReason.STOP_STRING) != ends:
            raise Nonconforming(
                f"with the stop string {stop!r}, a completion that would say {before.text!r} says {after.text!r} for "
                f"the reason {after.stop_reason}; end it at the string"
            )


def end_tokens_end_completions(trial: Trial) -> None:
    """Check that a completion ends with the first end-of-sequence id, which is part of it and scored."""
    ends = frozenset(range(0, trial.loaded.model.config.vocab_size, 3))
    for one in _completions(sample(trial.engine(dataclasses.replace(trial.loaded, eos_ids=ends)))):
        early = [token for token in one.token_ids[:-1] if token in ends]
        if early or (one.stop_reason is StopReason.EOS) != (one.token_ids[-1] in ends):
            raise Nonconforming(
                f"the ids {list(one.token_ids)} with the reason {one.stop_reason} do not end at the first of the "
                "model's eos_ids, which belongs to the completion"
            )


def new_weights_are_seen(trial: Trial) -> None:
    """Check that an engine samples from the weights that training has changed in place since it was built."""
    loaded = trial_model(seed=0)
    engine = trial.engine(loaded)
    sample(engine)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(1.3)
    _refuse_gap(loaded, sample(engine, seed=1), 1.0, "read the weights anew in every call of sample")


def a_clone_samples_its_own_model(trial: Trial) -> None:
    """Check that ``clone_for`` returns an engine on the other model, as sampling in parallel with training needs."""
    other = trial_model(seed=1)
    clone = trial.engine().clone_for(other)
    _refuse_gap(other, sample(clone), 1.0, "clone_for(loaded) must sample from the model that it is given")


def counts_begin_again(trial: Trial) -> None:
    """Check that ``take_counts`` returns the work since its last call."""
    engine = trial.engine()
    engine.take_counts()
    sample(engine)
    counted, again = engine.take_counts(), engine.take_counts()
    if not isinstance(counted, RolloutCounts) or again != RolloutCounts():
        raise Nonconforming("take_counts must return a RolloutCounts and begin again from zero")
    if not counted.decoded_rows:
        raise Nonconforming("take_counts counts no decoded rows, so the run's FLOPs would be wrong")


def a_stopped_engine_ends(trial: Trial) -> None:
    """Check that sampling raises ``SamplingStopped`` once ``stop`` was called."""
    engine = trial.engine()
    engine.stop()
    try:
        sample(engine)
    except SamplingStopped:
        return
    raise Nonconforming("after stop(), sample must raise SamplingStopped, or an interrupted run would not end")


CHECKS: tuple[Check, ...] = (
    groups_are_the_requested_ones,
    log_probs_are_the_models_own,
    a_seed_decides_every_token,
    company_does_not_matter,
    stop_strings_end_completions,
    end_tokens_end_completions,
    new_weights_are_seen,
    a_clone_samples_its_own_model,
    counts_begin_again,
    a_stopped_engine_ends,
)
"""Every check, in an order in which the first failure is the likely cause of others."""


def failures(section: RolloutSection) -> dict[str, str]:
    """Run every check on the engine that a recipe names; return a sentence by check, empty where it passed.

    Raises:
        ConfigError: there is no such engine, or a setting is wrong.
    """
    engine_builder(section)
    return run_checks(CHECKS, Trial(section, trial_model(seed=0)))


def _completions(groups: Sequence[Group]) -> list[Completion]:
    return [one for group in groups for one in group.completions]


def _ids(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in groups]


def _refuse_gap(loaded: LoadedModel, groups: Sequence[Group], temperature: float, way_out: str) -> None:
    gaps = [0.0]
    for group in groups:
        for one in group.completions:
            with torch.inference_mode():
                truth = reference_log_probs(loaded, group.prompt.context_ids, one.token_ids, temperature)
            gaps.append(float(np.abs(truth.numpy() - one.logp_gen).max()))
    if not float(np.max(gaps)) <= MAX_GAP:  # also if it is NaN
        raise Nonconforming(
            f"log-probabilities differ from the model's own by up to {np.max(gaps):.2g} nats, where rounding explains "
            f"{MAX_GAP:g}; {way_out}"
        )
