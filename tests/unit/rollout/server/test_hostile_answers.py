"""A server that answers with anything at all: one sentence, in time, with nothing in it that a terminal obeys."""

import pytest

from heliostat.printed import visible
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, Server, ServerEngine, ServerError, Vllm
from heliostat.rollout.server import client
from tests.support.fake_server import FakeServer, serving
from tests.support.hostile_answers import ANSWERS, CONNECTIONS
from tests.support.nano import make_nano, make_prompts

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that has answered well once, and its engine."""
    state = FakeServer(make_nano())
    with serving(state) as url:
        one = Server(url, timeout_s=20.0, num_retries=0, first_pause_s=0.01)
        engine = ServerEngine(make_nano(), DecodeLimits(6), one, Vllm(), tmp_path_factory.mktemp("sync"), 1, 1e-3)
        sample(engine)
        yield state, engine


def sample(engine):
    settings = SamplingSettings(temperature=1.0)
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 1), 4, settings, seed=3, policy_step=5))


def refusal(served, fault, timeout_s=20.0):
    """The sentence that an answer is refused with; afterwards the engine samples as before."""
    state, engine = served
    engine.client.server = Server(engine.client.server.url, timeout_s=timeout_s, num_retries=0)
    state.always[COMPLETIONS] = fault
    with pytest.raises(ServerError) as error:
        sample(engine)
    del state.always[COMPLETIONS]
    engine.client.server = Server(engine.client.server.url, timeout_s=20.0, num_retries=0)
    assert len(sample(engine)[0].completions) == 4
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_a_wrong_answer_is_one_sentence(served, name):
    said = refusal(served, ANSWERS[name])
    assert served[1].client.server.url in said
    assert len(said) < 500
    assert visible(said) == said
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_connection_that_does_not_end_is_given_up(served, name):
    """Whatever keeps it alive: the deadline is that of the whole answer."""
    said = refusal(served, CONNECTIONS[name], timeout_s=1.0)
    assert "failed 1 times" in said
    assert visible(said) == said


def test_a_body_without_end_is_refused(served, monkeypatch):
    monkeypatch.setattr(client, "MAX_ANSWER", 1 << 20)
    assert "more than 1 MiB" in refusal(served, lambda handler, answer: handler.send(200, b" " * (3 << 20)))


@pytest.mark.parametrize(
    "answer", [[], {}, {"data": []}, {"data": ["x"]}, {"data": [{"id": 3}]}, {"data": {"0": 1}}, None]
)
def test_a_list_of_models_of_another_shape_is_refused(answer, tmp_path):
    state = FakeServer(make_nano())
    state.always["/v1/models"] = lambda handler, right: answer if answer is not None else handler.send(200, b"null")
    with serving(state) as url:
        engine = ServerEngine(make_nano(), DecodeLimits(6), Server(url, num_retries=0), Vllm(), tmp_path, 1, 1e-3)
        with pytest.raises(ServerError, match="answered with"):
            sample(engine)
