"""A teacher's server is refused before the run if its tokens, places, temperature or weights are others."""

import json

import pytest
import torch

from heliostat.config import ConfigError
from heliostat.rollout import Server
from heliostat.train.teachers.scoring_routes import SCORING
from heliostat.train.teachers.server_checks import (
    Served,
    check_log_probs,
    check_tokenizer,
    fingerprint_of,
    room_of,
)
from tests.support.fake_server import serving
from tests.support.fake_teacher import TEACHERS, FakeTeacher
from tests.support.nano import make_nano


@pytest.fixture(scope="module")
def teacher():
    return make_nano(seed=1, eos_bias=0, scale=20.0)  # a temperature shows where some tokens are likelier than others


def asked(state, check, kind="vllm", model="served"):
    """The result of a check of a server."""
    with serving(state) as url:
        return check(Served(Server(url, 5.0, 0, title="teacher"), SCORING[kind], model))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_right_server_passes_every_check(teacher, kind):
    state = TEACHERS[kind](teacher)
    with serving(state) as url:
        served = Served(Server(url, 5.0, 0, title="teacher"), SCORING[kind], "served")
        assert room_of(served) == state.max_length - SCORING[kind].headroom
        check_tokenizer(served, teacher)
        check_log_probs(served, teacher)
        assert fingerprint_of(served, teacher).is_of(fingerprint_of(served, teacher))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"shift": 1}, "of other places.*they are shifted"),
        ({"shift": -1}, "of other places.*they are shifted"),
        ({"temperature": 0.4}, "not those of temperature 1"),
        ({"temperature": 3.0}, "not those of temperature 1"),
        ({"offset": -2.0}, "not those of temperature 1"),
        ({"offset": 30.0}, "no finite number up to 0"),
    ],
)
def test_log_probabilities_of_something_else_are_refused(teacher, fault, sentence):
    state = FakeTeacher(teacher)
    for name, value in fault.items():
        setattr(state, name, value)
    with pytest.raises(ConfigError, match=sentence) as error:
        asked(state, lambda served: check_log_probs(served, teacher))
    assert "\n" not in str(error.value)


def test_another_tokenizer_is_refused(teacher):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab["7"], vocab["8"] = vocab["8"], vocab["7"]
    state = FakeTeacher(teacher)
    state.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(ConfigError, match=r"has another tokenizer than model 'tiny' \(token '[78]' of a probe"):
        asked(state, lambda served: check_tokenizer(served, teacher))


def test_a_model_that_is_not_served_is_named_with_those_that_are(teacher):
    with pytest.raises(ConfigError, match=r"teacher\.model = 'other' is not served at http.*, which has 'served'"):
        asked(FakeTeacher(teacher), room_of, model="other")


def test_other_weights_have_another_fingerprint_and_rounded_ones_the_same():
    models = [make_nano(seed=seed, eos_bias=0, scale=6.0) for seed in (1, 1, 2)]
    models[1].model.to(torch.bfloat16)
    own, rounded, other = [
        asked(FakeTeacher(one), lambda served, one=one: fingerprint_of(served, one)) for one in models
    ]
    assert own.is_of(rounded)
    assert own.values != rounded.values
    assert not own.is_of(other)
