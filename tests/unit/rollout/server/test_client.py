"""The HTTP client against a real server with real faults."""

import os
import sys

import pytest

from heliostat.config import ConfigError
from heliostat.rollout import Server, ServerError
from heliostat.rollout.server import client as client_module
from tests.support import fake_server
from tests.support.fake_server import FakeServer, serving
from tests.support.forks import in_child

PATH = "/v1/models"
KEY = "sk-very-secret"


def client(url, **changes):
    return Server(url, **{"timeout_s": 5.0, "num_retries": 2, "first_pause_s": 0.01, **changes})


@pytest.mark.parametrize("fault", ["dies", "truncated", "half_a_document", "web_page", "unavailable"])
def test_a_fault_that_passes_is_survived(fault):
    state = FakeServer(None)
    state.faults[PATH] = [getattr(fake_server, fault)] * 2
    with serving(state) as url:
        assert client(url).get(PATH)["data"][0]["id"] == "served"
    assert state.calls[PATH] == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("dies", "failed 3 times"),
        ("truncated", "broke off"),
        ("half_a_document", "not JSON"),
        ("web_page", "not JSON: <html>proxy login"),
        ("unavailable", "status 503.*engine is starting"),
    ],
)
def test_a_fault_that_stays_is_one_sentence(fault, words):
    state = FakeServer(None)
    state.always[PATH] = getattr(fake_server, fault)
    with serving(state) as url, pytest.raises(ServerError, match=words) as error:
        client(url).get(PATH)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["hangs", "drips"])
def test_a_server_that_does_not_finish_is_given_up(fault):
    """A byte now and then resets a timeout of single reads, but not the deadline of the answer."""
    state = FakeServer(None)
    state.always[PATH] = getattr(fake_server, fault)
    with serving(state) as url, pytest.raises(ServerError, match=r"timed out|not complete after"):
        client(url, timeout_s=0.3, num_retries=1).get(PATH)
    assert state.calls[PATH] == 2


def test_a_slow_answer_is_waited_for():
    state = FakeServer(None)
    state.always[PATH] = fake_server.answers_late
    with serving(state) as url:
        assert client(url).get(PATH)["data"]
    assert state.calls[PATH] == 1


def test_a_server_that_is_not_there():
    with serving(FakeServer(None)) as url:
        pass
    with pytest.raises(ServerError, match="refused"):
        client(url).get(PATH)


def test_redirects_are_not_followed():
    elsewhere, state = FakeServer(None), FakeServer(None)
    with serving(elsewhere) as other, serving(state) as url:
        state.always[PATH] = lambda handler, answer: handler.send(307, b"", Location=other + PATH)
        with pytest.raises(ServerError, match="does not name"):
            client(url).get(PATH)
    assert elsewhere.calls.total() == 0


def test_proxies_of_the_environment_are_not_contacted(monkeypatch):
    proxy, state = FakeServer(None), FakeServer(None)
    with serving(proxy) as other, serving(state) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other)
        client(url).get(PATH)
    assert proxy.calls.total() == 0


def test_a_wrong_request_is_not_repeated():
    state = FakeServer(None)
    state.always[PATH] = lambda handler, answer: handler.send(400, b'{"error": "max_tokens too large"}')
    with serving(state) as url, pytest.raises(ServerError, match=r"status 400.*max_tokens"):
        client(url).get(PATH)
    assert state.calls[PATH] == 1


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_sent_and_never_repeated(status):
    state = FakeServer(None)
    state.always[PATH] = lambda handler, answer: handler.send(status, f"bad key {KEY}".encode())
    with serving(state) as url:
        server = client(url, api_key=KEY)
        with pytest.raises(ServerError) as error:
            server.get(PATH)
    assert state.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value)
    assert KEY not in repr(server)


def test_a_path_prefix_is_kept():
    state = FakeServer(None)
    state.always["/node/3" + PATH] = lambda handler, answer: {"here": True}
    with serving(state) as url:
        assert client(url + "/node/3").get(PATH) == {"here": True}


def test_an_answer_without_end_is_refused_once_it_is_too_long(monkeypatch):
    monkeypatch.setattr(client_module, "MAX_ANSWER", 1 << 20)
    state = FakeServer(None)
    state.always[PATH] = lambda handler, answer: handler.send(200, b"[" + b" " * (3 << 20) + b"]")
    with serving(state) as url, pytest.raises(ServerError, match="more than 1 MiB in one answer"):
        client(url).get(PATH)
    assert state.calls[PATH] == 1


def test_an_answer_nested_too_deeply_is_refused():
    state = FakeServer(None)
    state.always[PATH] = lambda handler, answer: handler.send(200, b"[" * 200_000)
    with serving(state) as url, pytest.raises(ServerError, match="nested too deeply"):
        client(url).get(PATH)


def test_what_a_server_says_reaches_no_terminal_as_commands():
    state = FakeServer(None)
    state.always[PATH] = lambda handler, answer: handler.send(404, "\x1b[2J\u202egone".encode())
    with serving(state) as url, pytest.raises(ServerError) as error:
        client(url).get(PATH)
    assert str(error.value).endswith("\u241b[2J\\u202egone")


def test_without_the_client_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pip install 'heliostat\[server\]'"):
        client("http://127.0.0.1:1")


def test_requests_work_in_a_forked_child_of_a_process_that_made_some():
    state = FakeServer(None)
    with serving(state) as url:
        assert client(url).get(PATH)["data"]
        child = in_child(lambda: client(url, num_retries=0).get(PATH)["data"])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
