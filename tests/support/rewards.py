"""Reward functions with TRL's signature, most of them broken; tests name them as ``tests.support.rewards:x``."""

import asyncio
import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = "tests.support.rewards"


def good(prompts, completions, answer):
    return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def slow(prompts, completions, seconds, **columns):
    time.sleep(seconds)
    return [1.0]


def at_least_ten_characters(prompts, completions):
    return [float(len(text) >= 10) for text in completions]


def half(prompts, completions):
    return [0.5]


def always(prompts, completions, **columns):
    return [1.0]


def even(prompts, completions, **columns):
    """What half of all texts earn, whatever the model has learned."""
    return [float(len(text) % 2 == 0) for text in completions]


def contains(prompts, completions, answer, **columns):
    return [float(wanted in text) for text, wanted in zip(completions, answer, strict=True)]


def never_applies(prompts, completions):
    return [None]


def applies_to_digits(prompts, completions):
    return [1.0 if text.isdigit() else None for text in completions]


def chat(prompts, completions, **columns):
    assert prompts[0][-1]["role"] == "user"
    assert completions[0][0]["role"] == "assistant"
    return [float(completions[0][0]["content"] == prompts[0][-1]["content"])]


def scaled(prompts, completions, factor=1.0, **columns):
    return [factor]


async def asynchronous(prompts, completions, **columns):
    return [1.0]


def no_torch(prompts, completions, **columns):
    heavy = {"torch", "numpy", "reasoning_gym", "pydantic"} & set(sys.modules)
    assert not heavy, heavy
    return [1.0]


def log_call(prompts, completions, path, **columns):
    with Path(path[0]).open("a") as log:
        log.write(f"{completions[0]}\n")
    return [1.0]


FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


@fault
def hangs(text):
    time.sleep(600)


@fault
def hangs_holding_the_gil(text):
    ctypes.PyDLL(None).sleep(600)


@fault
def hangs_with_children(text):
    marker = text.removeprefix("hangs_with_children ")
    subprocess.run([sys.executable, "-c", f"import time; time.sleep(600)  # {marker}"])


@fault
def raises(text):
    raise RuntimeError("the judge is out")


@fault
def exits(text):
    sys.exit("no more")


@fault
def dies(text):
    os._exit(3)


@fault
def crashes(text):
    ctypes.string_at(0)


@fault
def eats_memory(text):
    return [bytearray(2**30) for _ in range(64)]


@fault
def not_a_number(text):
    return [float("nan")]


@fault
def infinite(text):
    return [float("inf")]


@fault
def too_many(text):
    return [1.0, 1.0]


@fault
def too_few(text):
    return []


@fault
def bare_float(text):
    return 1.0


@fault
def word(text):
    return ["1.0"]


@fault
def recurses(text):
    return recurses(text)


def faulty(prompts, completions, answer):
    """Judges like ``good``, unless the completion names a fault; then it has that fault."""
    name = completions[0].split(" ")[0]
    return FAULTS[name](completions[0]) if name in FAULTS else good(prompts, completions, answer)


CLIENT = {}


async def keeps_a_client(prompts, completions, port, **columns):
    """Asks a server over the one connection that it ever opens; the server says how many it has had."""
    if "connection" not in CLIENT:
        CLIENT["connection"] = await asyncio.open_connection("127.0.0.1", port)
        CLIENT["loop"] = asyncio.get_running_loop()
    if completions == ["raise"]:
        raise RuntimeError("asked to")
    reader, writer = CLIENT["connection"]
    writer.write(b"?\n")
    await writer.drain()
    return [float(await asyncio.wait_for(reader.readline(), 20))]


async def shares_the_loop(prompts, completions, port, **columns):
    return [float(CLIENT["loop"] is asyncio.get_running_loop())]


def counts_tokens(completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def takes_limit(completions, limit=3, **columns):
    return [float(len(text) <= limit) for text in completions]


def has_thoughts(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>(?!.*<think>)(.*?)</think>.*$", text, re.DOTALL) else 0.0 for text in texts]


def is_accurate(completions, solution, log_extra=None, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.endswith(right)) for text, right in zip(texts, solution, strict=True)]


def _overlong(longest, soft):
    def punish(completion_ids, **kwargs):
        return [-min(1.0, max(0.0, (len(ids) - longest + soft) / soft)) for ids in completion_ids]

    return punish


not_too_long = _overlong(10, 5)
