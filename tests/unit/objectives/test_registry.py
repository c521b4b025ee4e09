import math

import pytest

from heliostat.config import ConfigError, ObjectiveSection
from heliostat.objectives import OBJECTIVES, build_objective, objective_names

TAKES_TAU = ["pmd-mean", "pmd-part", "pmd-baseline", "kimi-k2", "kimi-k2.5", "opmd", "kl-chi2"]


def build(name, **settings):
    return build_objective(ObjectiveSection(name=name, **settings))


def test_every_name_builds_the_objective_of_that_name():
    assert {build(name).name for name in objective_names()} == set(objective_names()) == set(OBJECTIVES)


def test_the_recipe_default_is_registered():
    assert build_objective(ObjectiveSection()).name == "pmd-mean"


def test_an_unknown_name_says_which_one_was_meant():
    with pytest.raises(
        ConfigError, match=r"unknown objective 'pmd-men' \(did you mean 'pmd-mean'\?\); known: pmd-mean,"
    ):
        build("pmd-men")


def test_an_unknown_key_says_which_one_was_meant():
    with pytest.raises(ConfigError, match=r"unknown key objective\.clip_hig \(did you mean .*clip_high"):
        build("dapo", clip_hig=0.3)


def test_a_wrong_type_names_the_key():
    with pytest.raises(ConfigError, match=r"objective\.tau = .warm."):
        build("pmd-mean", tau="warm")
    with pytest.raises(ConfigError, match=r"objective\.length_normalization = .tokens."):
        build("pmd-mean", length_normalization="tokens")


@pytest.mark.parametrize("name", TAKES_TAU)
@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan, math.inf])
def test_tau_must_be_positive_and_finite(name, tau):
    with pytest.raises(ConfigError, match="tau must be a positive finite number"):
        build(name, tau=tau)
    with pytest.raises(ValueError, match="tau must be a positive finite number"):
        OBJECTIVES[name](tau=tau)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pmd-mean", {"length_constant": 64.0}, "only used with length_normalization = 'constant'"),
        ("dr-grpo", {"length_constant": 0.0}, "length_constant must be a positive"),
        ("pmd-baseline", {"mix": 1.5}, "mix must lie between 0"),
        ("pmd-baseline", {"mix": math.nan}, "mix must lie between 0"),
        ("pmd-part", {"floor": -1.0}, "floor must be 0 or a positive"),
        ("opmd", {"floor": math.inf}, "floor must be 0 or a positive"),
        ("log-ratio-decay", {"decay": -1.0}, "decay must be 0 or a positive"),
        ("kl-chi2", {"chi2_weight": -1.0}, "chi2_weight must be 0 or a positive"),
        ("kimi-k2.5", {"min_log_ratio": 0.1}, "min_log_ratio must be below 0"),
        ("grpo", {"clip_low": 1.2}, "clip_low must be at most 1"),
        ("grpo", {"clip_high": 0.0}, "clip_high must be a positive"),
        ("cispo", {"clip_low": -0.2}, "clip_low must be a positive"),
        ("dppo", {"max_ratio": 0.0}, "max_ratio must be a positive"),
        ("grpo", {"kl_ref": -0.1}, "kl_ref must be 0 or a positive"),
        ("reinforce", {"truncated_is": math.nan}, "truncated_is must be 0 or a positive"),
    ],
)
def test_contradictory_or_impossible_settings_are_refused_in_one_line(name, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("opmd", {"tau": 0.01, "floor": 1e-8, "length_normalization": "sequence"}),
        ("grpo", {"clip_low": 0.2, "clip_high": 0.2, "length_normalization": "sequence", "baseline": "standardized"}),
        ("dr-grpo", {"clip_low": 0.2, "clip_high": 0.2, "length_normalization": "constant", "baseline": "mean"}),
        ("dapo", {"clip_low": 0.2, "clip_high": 0.28, "length_normalization": "token", "baseline": "standardized"}),
        ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4, "length_normalization": "sequence"}),
        ("rloo", {"baseline": "leave-one-out"}),
        ("kimi-k2.5", {"length_normalization": "token"}),
        ("pmd-mean", {"leave_one_out": False, "length_normalization": "none"}),
    ],
)
def test_a_name_without_settings_means_what_its_source_published(name, published):
    objective = build(name)
    assert {key: getattr(objective, key) for key in published} == published


def test_hyper_parameters_cannot_change_under_a_run():
    with pytest.raises(AttributeError):
        build("pmd-mean").tau = 0.5


@pytest.mark.parametrize("name", objective_names())
def test_only_regressions_say_what_they_regress_on(name):
    """The log's share of the subproblem solved is read for these and left out for the others."""
    squares = {"pmd-mean", "pmd-part", "pmd-baseline", "kimi-k2", "opmd"}
    expected = {**dict.fromkeys(squares, 0.3), "log-ratio-decay": 0.2}.get(name)
    objective = build(name, **({"tau": 0.3} if name in squares else {}))
    assert objective.regression_tau == expected
    assert build("log-ratio-decay", level="token").regression_tau is None
    assert build("log-ratio-decay", decay=0.0).regression_tau is None
