"""The protocol of OpenEnv over a real socket, with a server of this test's own."""

import time

import pytest

from heliostat.tasks.environments.adapters.openenv_server import OpenEnvServer, ServerError

pytest.importorskip("httpx2")
pytest.importorskip("wsproto", reason="the WebSocket protocol of httpx2 is in the extra: environments")

from tests.support.fake_openenv import EchoEnvironment, ToolServer, serving

ROW = {"prompt": "hello", "answer": None, "level": 2}


@pytest.fixture
def server():
    with serving(EchoEnvironment) as (url, states):
        environment = OpenEnvServer(url)
        yield environment, states
        environment.close()


def test_an_episode(server):
    environment, _ = server
    assert environment.reset(ROW, 7) == "seed 7 hello"
    first, second = environment.step("one"), environment.step(" two ")
    assert (first.observation, first.reward, first.done) == ("ONE", None, False)  # null is no reward, never 0
    assert second.observation == "TWO"
    last = environment.step('{"message": "three"}')
    assert (last.observation, last.reward, last.done) == ('{"text": "THREE", "turn": 3}', 0.5, True)


def test_a_wrong_action_is_the_models_and_a_crash_is_the_servers(server):
    environment, _ = server
    environment.reset(ROW, 0)
    wrong = environment.step('{"massage": "x"}')
    assert (wrong.observation, wrong.info["invalid"]) == ("error: invalid action", True)
    with pytest.raises(ServerError, match=r"the OpenEnv server at http://127.0.0.1:.* says EXECUTION_ERROR: refused"):
        environment.step("crash")


def test_every_episode_is_a_session_of_its_own(server):
    environment, states = server
    environment.reset(ROW, 0)
    environment.step("one")
    environment.reset(ROW, 1)
    assert environment.step("one").observation == "ONE"
    environment.close()
    environment.close()
    until = time.monotonic() + 10
    while states != ["closed", "closed"] and time.monotonic() < until:
        time.sleep(0.01)
    assert states == ["closed", "closed"]


def test_the_fields_can_be_named():
    with serving(EchoEnvironment) as (url, _):
        environment = OpenEnvServer(url, action_field="massage", observation_field="text")
        assert environment.reset(ROW, 0) == "seed 0 hello"
        assert environment.step("one").info["invalid"]  # the server has no such field
        environment.close()


def test_the_field_must_be_named_where_there_are_several(monkeypatch):
    monkeypatch.setattr(EchoEnvironment, "action", {"properties": {"x": {}, "y": {}}, "required": ["x", "y"]})
    with serving(EchoEnvironment) as (url, _):
        environment = OpenEnvServer(url)
        environment.reset(ROW, 0)
        with pytest.raises(ValueError, match="have the fields x, y; name one with action_field"):
            environment.step("one")
        environment.close()


def test_tools_of_a_server():
    with serving(ToolServer) as (url, _):
        environment = OpenEnvServer(url)
        assert environment.reset(ROW, 0) == ""
        assert [tool["function"]["name"] for tool in environment.tools()] == ["reverse"]
        step = environment.step('reverse("abc")\nreverse()\nreserve("x")')
        assert [message["content"] for message in step.observation] == [
            "cba",
            "error: word is missing",
            "error: no tool 'reserve'; there are: reverse",
        ]
        assert (step.reward, step.done, step.info) == (1.0, False, {"calls": 3, "errors": 2, "invalid": False})
        over = environment.step('reverse("end")\nreverse("not reached")')
        assert (len(over.observation), over.done) == (1, True)
        final = environment.step("I am done.")
        assert (final.reward, final.done) == (None, True)
        environment.close()


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match="url = 'localhost:8000': must begin with http:// or https://"):
        OpenEnvServer("localhost:8000")
