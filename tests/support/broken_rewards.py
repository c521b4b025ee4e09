"""Rewards that break one promise each; their processes import nothing else."""

import itertools
import os
import random
import time


def raises(completions, answer, **columns):
    return [1.0 / len(completions[0].split("4")[1:])]


def above_one(completions, **columns):
    return [float(len(text)) for text in completions]


seen = itertools.count()


def counts(completions, **columns):
    return [1.0 / (1 + next(seen)) for _ in completions]


def draws(completions, **columns):
    return [random.random() for _ in completions]


def needs_text(completions, **columns):
    return [float(text[0] == "4") for text in completions]


def hangs(completions, **columns):
    for text in completions:
        if len(text) > 10_000:
            time.sleep(60)
    return [0.0] * len(completions)


def ends_the_process(completions, **columns):
    if len(completions[0]) > 10_000:
        os._exit(3)
    return [0.0]
