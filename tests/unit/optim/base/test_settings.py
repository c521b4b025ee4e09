"""One list of hyperparameters per optimizer: a settings object, keywords, and a recipe's keys say the same."""

from dataclasses import dataclass, fields

import pytest
import torch
from optimizer_rows import Classifier, batch, train_step, weights

from heliostat.config import ConfigError, OptimizerSection
from heliostat.optim import (
    RENG,
    RING,
    Eva,
    EvaSettings,
    KroneckerProduct,
    KroneckerProductSettings,
    KroneckerSum,
    KroneckerSumSettings,
    Rank1NaturalGradient,
    Rank1Settings,
    RengSettings,
    RingSettings,
    RKalman,
    RKalmanSettings,
    build_optimizer,
)
from heliostat.optim.base.settings import settings_from
from heliostat.optim.registry import REGISTRY


def reng(model, settings=None, **keywords):
    return RENG(torch.optim.SGD(model.parameters(), lr=0.1), 0.05, settings, **keywords)


def of_parameters(cls):
    return lambda model, settings=None, **keywords: cls(model.parameters(), 0.1, settings, **keywords)


def of_model(cls):
    return lambda model, settings=None, **keywords: cls(model, 0.1, settings, **keywords)


CASES = {
    "eva": (of_model(Eva), EvaSettings, {"damping": 0.5, "ema": 0.3, "max_kl": 0.01, "adamw_betas": (0.5, 0.9)}),
    "ring": (of_model(RING), RingSettings, {"rho": 0.1, "inverse_every": 2, "damping_form": "exact"}),
    "rank1": (of_parameters(Rank1NaturalGradient), Rank1Settings, {"num_scores": 2, "momentum": 0.5, "block": "param"}),
    "rkalman": (of_parameters(RKalman), RKalmanSettings, {"form": "low-rank", "rank": 3, "num_scores": 2}),
    "kronecker-sum": (of_parameters(KroneckerSum), KroneckerSumSettings, {"graft": False, "block_size": 3}),
    "kronecker-product": (of_parameters(KroneckerProduct), KroneckerProductSettings, {"betas": (0.5, 0.9)}),
    "reng": (reng, RengSettings, {"mode": "double-backward"}),
}
every = pytest.mark.parametrize("name", CASES)


def trained(optimizer_of):
    model = Classifier(torch.float32)
    optimizer = optimizer_of(model)
    for step in range(3):
        torch.manual_seed(step)
        train_step(optimizer, model, *batch(seed=step))
    return weights(model)


@pytest.mark.slow
@every
def test_settings_and_keywords_give_the_same_steps(name):
    make, cls, keywords = CASES[name]
    by_keywords = trained(lambda model: make(model, **keywords))
    assert torch.equal(by_keywords, trained(lambda model: make(model, cls(**keywords))))
    assert not torch.equal(by_keywords, trained(make))


@every
def test_keywords_replace_fields_of_the_settings(name):
    make, cls, keywords = CASES[name]
    optimizer = make(Classifier(torch.float32), cls(**keywords), **{next(iter(keywords)): _default(cls, keywords)})
    rest = dict(list(keywords.items())[1:])
    given = {"rho": 0.05} if name == "reng" else {}
    assert optimizer.settings == cls(**{**given, **rest})


def _default(cls, keywords):
    return getattr(cls(), next(iter(keywords)))


@every
def test_a_keyword_that_is_no_field_is_refused_with_the_nearest(name):
    make, cls, keywords = CASES[name]
    field = next(iter(keywords))
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no field '{field}x' \(did you mean '{field}'"):
        make(Classifier(torch.float32), **{f"{field}x": 1})


@every
def test_a_hyperparameter_without_its_name_is_refused(name):
    make, cls, _ = CASES[name]
    with pytest.raises(TypeError, match=f"settings must be {cls.__name__}, got 0.5; pass hyperparameters by name"):
        make(Classifier(torch.float32), 0.5)


@every
def test_a_recipes_keys_are_the_fields_of_the_class(name):
    _, cls, _ = CASES[name]
    own = {field.name for field in fields(cls)}
    recipe = {field.name for field in fields(REGISTRY[name])}
    assert recipe - own == ({"base", "weight_decay"} if name == "reng" else set())
    assert own <= recipe


def test_a_recipe_refuses_a_value_with_the_key():
    section = OptimizerSection(name="ring", lr=0.1, statistics_every=0)
    with pytest.raises(ConfigError, match=r"optimizer\.statistics_every must be at least 1, got 0"):
        build_optimizer(section, Classifier(torch.float32))


@pytest.mark.parametrize(
    ("cls", "keywords", "words"),
    [
        (EvaSettings, {"damping": 0.0}, "damping must be positive, got 0"),
        (EvaSettings, {"adamw_betas": (0.9, 1.0)}, "adamw_betas must be in"),
        (RingSettings, {"damping_form": "none"}, "damping_form must be 'factored' or 'exact', got 'none'"),
        (Rank1Settings, {"block": "row"}, "block must be 'global', 'param' or 'layer', got 'row'"),
        (RKalmanSettings, {"forgetting": 0.0}, r"forgetting must be in \(0, 1\], got 0"),
        (RKalmanSettings, {"rank": 0}, "rank must be at least 1, got 0"),
        (KroneckerSumSettings, {"block_size": 0}, "block_size must be at least 1 or None, got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(cls, keywords, words):
    with pytest.raises(ValueError, match=words):
        settings_from(cls, None, keywords)


def test_further_fields_of_a_subclass_are_left_out():
    @dataclass(frozen=True, kw_only=True)
    class More(EvaSettings):
        colour: str = "blue"

    assert settings_from(EvaSettings, More(damping=0.5), {}) == EvaSettings(damping=0.5)
