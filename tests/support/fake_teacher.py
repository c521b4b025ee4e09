"""A teacher's server over real HTTP, with a real small model behind it, in the dialects of vLLM and SGLang.

Routes, parameters and answers are those of the sources of vLLM and SGLang; no real server was asked.
"""

from collections.abc import Sequence

import torch

from tests.support.fake_server import FakeServer, Refused


class FakeTeacher(FakeServer):
    """vLLM's routes for a teacher.

    Attributes:
        shift: places by which log-probabilities are off.
        temperature: at which they are given, whatever is asked.
        offset: added to all of them.
        num_scored: sequences that were scored.
    """

    def __init__(self, loaded):
        super().__init__(loaded)
        self.shift = 0
        self.temperature = 1.0
        self.offset = 0.0
        self.tokenizer = loaded.tokenizer
        self.num_scored = 0

    def routes(self, body):
        return {
            "/v1/models": self.models,
            "/tokenize": lambda: self.tokenize(body),
            "/v1/completions": lambda: self.score(body) if "prompt_logprobs" in body else self.draw(body),
        }

    def tokenize(self, body):
        ids = self.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"tokens": ids, "count": len(ids), "max_model_len": self.max_length}

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int]) -> list[float | None]:
        """One number a token, and nothing for the first."""
        if len(ids) > self.max_length:
            raise Refused(400, b'{"error":"too long"}')
        with self.lock:
            self.num_scored += 1
            hidden = self.loaded.head.hidden(input_ids=torch.tensor([list(ids)]), use_cache=False)[0]
            logits = self.loaded.head.logits(hidden).float() / self.temperature
        found = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0] + self.offset
        return [None, *torch.roll(found, -self.shift).tolist()]

    def score(self, body):
        assert body["prompt_logprobs"] == 0
        assert body["max_tokens"] == 1
        choices = [
            {
                "index": index,
                "text": "",
                "finish_reason": "length",
                "prompt_logprobs": [
                    None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": "?"}}
                    for token, value in zip(ids, self.log_probs(ids), strict=True)
                ],
            }
            for index, ids in enumerate(body["prompt"])
        ]
        return {"id": "cmpl-1", "object": "text_completion", "model": "served", "choices": choices[::-1]}

    def draw(self, body):
        assert body["return_token_ids"] is True
        drawn = self.drawn(body["prompt"], body["n"], body["temperature"])
        return {"choices": [{"index": index, "text": "", "token_ids": [token]} for index, token in enumerate(drawn)]}

    @torch.no_grad()
    def drawn(self, ids: Sequence[int], num: int, temperature: float) -> list[int]:
        with self.lock:
            hidden = self.loaded.head.hidden(input_ids=torch.tensor([list(ids)]), use_cache=False)[0, -1:]
            odds = (self.loaded.head.logits(hidden).float() / temperature).softmax(-1)[0]
        generator = torch.Generator().manual_seed(0)
        return torch.multinomial(odds, num, replacement=True, generator=generator).tolist()


class FakeSGLangTeacher(FakeTeacher):
    """SGLang's routes for a teacher."""

    def routes(self, body):
        def generated():
            return self.score(body) if body.get("return_logprob") else self.draw(body)

        return {"/v1/models": self.models, "/tokenize": lambda: self.tokenize(body), "/generate": generated}

    def score(self, body):
        assert body["sampling_params"]["max_new_tokens"] == 0
        return [
            {
                "text": "",
                "meta_info": {
                    "input_token_logprobs": [
                        [None if place == start else value, token, None]
                        for place, (token, value) in enumerate(zip(ids, self.log_probs(ids), strict=True))
                        if place >= start
                    ]
                },
            }
            for ids, start in zip(body["input_ids"], body["logprob_start_len"], strict=True)
        ]

    def draw(self, body):
        settings = body["sampling_params"]
        drawn = self.drawn(body["input_ids"], settings["n"], settings["temperature"])
        return [{"text": "", "output_ids": [token]} for token in drawn]


TEACHERS = {"vllm": FakeTeacher, "sglang": FakeSGLangTeacher}
"""The kinds of servers, by their names in ``teacher.engine``."""


def taught_from(url, **more):
    """The settings of a recipe whose teacher is on a server."""
    return {"teacher__url": url, "teacher__model": "served", "teacher__retries": 0, **more}
