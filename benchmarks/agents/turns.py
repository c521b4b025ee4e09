"""Measure the cost of several turns: CPU seconds of episodes and of one turn with as many sampled tokens.

    python benchmarks/agents/turns.py                # replies of 8 tokens
    python benchmarks/agents/turns.py --reply 2

All sides decode 64 completions of the 5M model and take one gradient. The episodes have eight turns of 16 sampled
tokens on average, with replies that are ready at once. Against them stand single turns of the same lengths, completion
by completion, and single turns that all have the mean length. Interleaved, one thread; medians of process time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time

import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.train.logprobs.packing import microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Group, Problem, TrainingGroup

FIVE_MILLION = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4}
NUM_PROMPTS, GROUP_SIZE, NUM_TURNS, MEAN_TURN = 8, 8, 8, 16

Dialogues = list[list[Scripted]]


def sample(loaded: LoadedModel, dialogues: Dialogues, ends: frozenset[int], seed: int) -> tuple[list[Group], float]:
    """Sample the other side's completions; return them with the CPU seconds.

    Args:
        ends: token ids that end a turn.
    """
    prompts = [
        encode_problem(loaded, Problem(f"p{number}", "sums", f"{number} + 25 - 3 + 41 ="))
        for number in range(NUM_PROMPTS)
    ]
    engine = TorchEngine(dataclasses.replace(loaded, eos_ids=ends), DecodeLimits(1000))
    began = time.process_time()
    groups = engine.sample(
        SampleRequest(prompts, GROUP_SIZE, SamplingSettings(), seed=seed, policy_step=0, dialogues=dialogues)
    )
    return groups, time.process_time() - began


def episodes(loaded: LoadedModel, reply: int, seed: int) -> tuple[list[Group], float]:
    """Sample episodes of ``NUM_TURNS`` turns of ``MEAN_TURN`` tokens on average."""
    ends = frozenset(range(0, loaded.model.config.vocab_size, MEAN_TURN))
    dialogues = [
        [Scripted(script(range(30, 90), NUM_TURNS - 1, reply), 10**6) for _ in range(GROUP_SIZE)]
        for _ in range(NUM_PROMPTS)
    ]
    return sample(loaded, dialogues, ends, seed)


def single_turns(loaded: LoadedModel, lengths: list[list[int]], seed: int) -> tuple[list[Group], float]:
    """Sample one turn of each of these lengths."""
    dialogues = [[Scripted(iter(()), length) for length in group] for group in lengths]
    return sample(loaded, dialogues, frozenset(), seed)


def train(loaded: LoadedModel, groups: list[Group]) -> float:
    """Take the gradient of the log-probabilities; return the CPU seconds."""
    policy = Policy(loaded, 1.0, shared_prompt=True)
    rows = rows_of([TrainingGroup(group, torch.zeros(len(group.completions))) for group in groups])
    began = time.process_time()
    for part in microbatches(rows, 8192, policy.padded_tokens):
        policy.log_probs(part).sum().backward()
    loaded.model.zero_grad()
    return time.process_time() - began


def measure(loaded: LoadedModel, reply: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return CPU seconds of decoding and of the gradient, by side."""
    groups, decoding = episodes(loaded, reply, seed)
    measured = {"episodes": (decoding, train(loaded, groups))}
    lengths = [[completion.num_sampled for completion in group.completions] for group in groups]
    mean = round(statistics.mean(length for group in lengths for length in group))
    even = [[mean] * GROUP_SIZE] * NUM_PROMPTS
    for name, wanted in (("one turn, same lengths", lengths), ("one turn, even lengths", even)):
        completions, decoding = single_turns(loaded, wanted, seed)
        measured[name] = (decoding, train(loaded, completions))
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    measured["tokens"] = (float(sum(map(sum, lengths))), float(tokens))
    return measured


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--reply", type=int, default=8, help="tokens of a reply")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(ModelSection(path="tiny", dtype="float32", settings=FIVE_MILLION), 0)
    loaded.model.eval()
    measure(loaded, options.reply, 0)  # warms up
    rounds = [measure(loaded, options.reply, repeat + 1) for repeat in range(options.repeats)]
    medians = {
        name: tuple(round(statistics.median(values), 3) for values in zip(*(r[name] for r in rounds), strict=True))
        for name in rounds[0]
    }
    sampled, fed = medians.pop("tokens")
    found: dict[str, object] = {"parameters": loaded.num_parameters, "reply": options.reply, "sampled_tokens": sampled}
    found |= {"token_ratio": round(fed / sampled, 3), "decoding_and_gradient_cpu_s": medians}
    for name in list(medians)[1:]:
        parts = [round(mine / theirs, 2) for mine, theirs in zip(medians["episodes"], medians[name], strict=True)]
        both = round(sum(medians["episodes"]) / sum(medians[name]), 2)
        found[f"ratio to {name}"] = {"decoding": parts[0], "gradient": parts[1], "both": both}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
