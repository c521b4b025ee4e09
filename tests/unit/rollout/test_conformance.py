"""The promises of an engine: shipped ones keep them, and each of a row of broken ones is told by its promise."""

import copy
import dataclasses

import pytest

from heliostat.config import RolloutSection
from heliostat.rollout import DecodeLimits
from heliostat.rollout.conformance import CHECKS, Trial, failures, sample, trial_model
from tests.support.own_parts import Plain


@pytest.fixture(scope="module")
def loaded():
    return trial_model(seed=0)


def test_the_shipped_engine_keeps_the_promises_that_own_ones_are_held_to():
    assert set(failures(RolloutSection()).values()) == {""}


def mapped(groups, change):
    """The groups, with each one's completions changed."""
    return [dataclasses.replace(group, completions=tuple(change(group.completions))) for group in groups]


class DropsAMember(Plain):
    def sample(self, request):
        return mapped(super().sample(request), lambda members: members[1:])


class HalvesItsLogProbs(Plain):
    def sample(self, request):
        halved = lambda members: [dataclasses.replace(one, logp_gen=one.logp_gen / 2) for one in members]  # noqa: E731
        return mapped(super().sample(request), halved)


class NeedsNoSeed(Plain):
    calls = 0

    def sample(self, request):
        NeedsNoSeed.calls += 1
        return super().sample(dataclasses.replace(request, seed=NeedsNoSeed.calls))


class SeedsByBatch(Plain):
    def sample(self, request):
        return super().sample(dataclasses.replace(request, seed=request.seed + len(request.prompts)))


class NeverStops(Plain):
    def __init__(self, loaded, limits):
        super().__init__(loaded, DecodeLimits(limits.max_new_tokens, limits.max_rows))


class NeverEnds(Plain):
    def __init__(self, loaded, limits):
        super().__init__(dataclasses.replace(loaded, eos_ids=frozenset()), limits)


class KeepsOldWeights(Plain):
    def __init__(self, loaded, limits):
        super().__init__(dataclasses.replace(loaded, model=copy.deepcopy(loaded.model)), limits)


class ClonesItself(Plain):
    def clone_for(self, loaded):
        return self


class CountsForEver(Plain):
    def take_counts(self):
        return self.inner.counts


class CannotStop(Plain):
    def stop(self):
        pass


BROKEN = {
    "groups_are_the_requested_ones": DropsAMember,
    "log_probs_are_the_models_own": HalvesItsLogProbs,
    "a_seed_decides_every_token": NeedsNoSeed,
    "company_does_not_matter": SeedsByBatch,
    "stop_strings_end_completions": NeverStops,
    "end_tokens_end_completions": NeverEnds,
    "new_weights_are_seen": KeepsOldWeights,
    "a_clone_samples_its_own_model": ClonesItself,
    "counts_begin_again": CountsForEver,
    "a_stopped_engine_ends": CannotStop,
}


def test_an_own_engine_that_keeps_them_is_let_in():
    assert set(failures(RolloutSection(engine="tests.support.own_parts:Plain")).values()) == {""}
    assert list(BROKEN) == [check.__name__ for check in CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_broken_promise_is_found(check, loaded):
    from heliostat.conformance import run_checks

    name = BROKEN[check.__name__].__name__
    found = run_checks([check], Trial(RolloutSection(engine=f"{__name__}:{name}"), loaded))
    assert found[check.__name__]
    assert "it raises" not in found[check.__name__]


class ExchangesGroups(Plain):
    def sample(self, request):
        return super().sample(request)[::-1]


class ForgetsAGroup(Plain):
    def sample(self, request):
        return super().sample(request)[1:]


class ReturnsNothing(Plain):
    def sample(self, request):
        super().sample(request)


@pytest.mark.parametrize("engine", [DropsAMember, ExchangesGroups, ForgetsAGroup, ReturnsNothing])
@pytest.mark.parametrize("is_clone", [False, True])
def test_a_run_refuses_groups_that_it_did_not_ask_for(engine, is_clone, loaded):
    own = Trial(RolloutSection(engine=f"{__name__}:{engine.__name__}"), loaded).engine()
    own = own.clone_for(loaded) if is_clone else own
    with pytest.raises(ValueError, match=f"rollout.engine = '{__name__}:{engine.__name__}': sample must return"):
        sample(own)
