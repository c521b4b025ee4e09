"""The fake server's answers against those that a real vLLM gave (``make vllm`` records them)."""

import json
from pathlib import Path

import pytest

from heliostat.rollout.server.answers import Completions, Inspection, Models, ModelSettings, WeightInfo
from heliostat.rollout.server.client import Server
from heliostat.rollout.server.vllm import sizes_of
from heliostat.train.judges.chat_completions import read_reply
from heliostat.train.teachers.scoring_routes import SCORING, Asked
from tests.support.fake_server import FakeServer
from tests.support.fake_teacher import FakeTeacher
from tests.support.nano import make_nano

ANSWERS = json.loads((Path(__file__).parents[3] / "reference" / "vllm_answers.json").read_text())["answers"]
KINDS = {
    "/v1/models": Models,
    "/server_info?config_format=json": ModelSettings,
    "/weight_info": WeightInfo,
    "/v1/completions": Completions,
    "/collective_rpc get_model_inspection": Inspection,
}
BODIES = {
    "/collective_rpc get_model_inspection": {"method": "get_model_inspection"},
    "/update_weight_version": {"new_version": "recorded"},
    "/v1/completions": {
        "model": "served",
        "prompt": [5, 6, 7],
        "n": 2,
        "seed": 3,
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "stop": [],
        "logprobs": 0,
        "return_token_ids": True,
    },
}
SAMPLING = {"model": "served", "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
TEACHER = {
    "/v1/completions scores": SAMPLING | {"prompt": [[5, 6, 7], [5, 6]], "prompt_logprobs": 0},
    "/v1/completions draws": SAMPLING | {"prompt": [5, 6], "n": 2, "return_token_ids": True},
    "/tokenize": {"model": "served", "prompt": "1 + 2", "add_special_tokens": False},
}
JUDGE = "/v1/chat/completions"
NEEDS_FILES = {"/collective_rpc", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/unload_lora_adapter again"}


def shape(answer):
    """The types of an answer's parts."""
    if isinstance(answer, dict):
        return {key: shape(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [shape(answer[0])] if answer else []
    return type(answer).__name__


def is_part_of(ours, theirs):
    """Whether every key of ours is one of theirs, with a part of the same type."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(key in theirs and is_part_of(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list):
        return not ours or not theirs or is_part_of(ours[0], theirs[0])
    return ours == theirs


@pytest.fixture(scope="module")
def fake():
    return FakeServer(make_nano())


@pytest.mark.parametrize("route", sorted(set(ANSWERS) - NEEDS_FILES - set(TEACHER) - {JUDGE}))
def test_the_fake_answers_like_the_real_server(route, fake):
    theirs = ANSWERS[route]
    assert theirs["status"] == 200
    ours = fake.answer(route.split()[0], BODIES.get(route))
    assert is_part_of(shape(ours), shape(theirs["answer"])), (shape(ours), shape(theirs["answer"]))


@pytest.mark.parametrize("route", KINDS)
def test_the_client_reads_the_real_answers(route):
    assert KINDS[route].model_validate(ANSWERS[route]["answer"])


def test_the_real_answers_are_what_the_dialect_relies_on():
    completion = ANSWERS["/v1/completions"]["answer"]
    assert [len(choice["token_ids"]) for choice in completion["choices"]] == [4, 4]
    assert sizes_of(ANSWERS["/collective_rpc get_model_inspection"]["answer"]["results"]) == {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "vocab_size": 512,
    }
    assert isinstance(ANSWERS["/v1/load_lora_adapter"]["answer"], str), "a sentence, no JSON"
    assert ANSWERS["/v1/unload_lora_adapter again"]["status"] == 404


@pytest.mark.parametrize("route", TEACHER)
def test_the_fake_teacher_answers_like_the_real_server(route):
    theirs = ANSWERS[route]
    assert theirs["status"] == 200
    ours = json.loads(json.dumps(FakeTeacher(make_nano()).answer(route.split()[0], TEACHER[route])))
    assert is_part_of(values(shape(ours)), values(shape(theirs["answer"]))), (shape(ours), shape(theirs["answer"]))


def values(shape):
    """A shape in which all token ids that are keys are one key."""
    if isinstance(shape, dict):
        return {"id" if key.isdigit() else key: values(part) for key, part in shape.items()}
    return [values(part) for part in shape] if isinstance(shape, list) else shape


def test_a_teacher_and_a_judge_are_read_from_the_real_answers(monkeypatch):
    recorded = {"scores": ANSWERS["/v1/completions scores"], "draws": ANSWERS["/v1/completions draws"]}

    def post(self, path, body):
        assert path == "/v1/completions"
        return recorded["scores" if "prompt_logprobs" in body else "draws"]["answer"]

    monkeypatch.setattr(Server, "post", post)
    server = Server("http://127.0.0.1:9", title="teacher")
    one, two = SCORING["vllm"].score(server, "served", [Asked((5, 6, 7), 1), Asked((5, 6), 1)])
    assert one[0] == pytest.approx(two[0], abs=1e-4)
    assert (len(one), len(two)) == (2, 1)
    assert len(SCORING["vllm"].draw(server, "served", [5, 6], 2)) == 2
    reply = read_reply(ANSWERS[JUDGE]["answer"], lambda text: 1.0)
    assert reply.failure == "the judge's reply ended by 'length'"
    assert (reply.prompt_tokens > 4, reply.reply_tokens) == (True, 4)
