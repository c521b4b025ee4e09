"""A language model small enough to list everything it can say, for the trainer itself to be held to exact solutions.

Four tokens (three digits and the end), answers of at most two tokens: thirteen completions in all. Arithmetic it can be
asked: digits that add up to the one in the prompt. The model is a real transformer of the kind the trainer always gets.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from heliostat.models import LoadedModel
from heliostat.models.loaded_model import assemble
from heliostat.types import Completion, Group, Problem, Prompt, StopReason, Verdict

EOS, DIGITS, MAX_TOKENS = 0, (1, 2, 3), 2
ANSWERS: tuple[tuple[int, ...], ...] = (
    (EOS,),
    *((digit, last) for digit, last in itertools.product(DIGITS, (*DIGITS, EOS))),
)


def enumerable_model(seed: int = 0, spread: float = 0.0) -> LoadedModel:
    """A one-layer Llama over four tokens; ``spread`` 0 says every next token with probability 1/4."""
    vocabulary = {"<eos>": EOS, **{str(token - 1): token for token in DIGITS}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        initializer_range=0.5,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(spread)
    return assemble(model, tokenizer, "enumerable")


def ask(total: int) -> Prompt:
    """Digits that add up to ``total`` (0, 1 or 2); the end token after it keeps the model's contexts all different."""
    return Prompt(Problem(f"sum {total}", "digits", str(total)), (DIGITS[total], EOS))


def reward(prompt: Prompt, answer: tuple[int, ...]) -> float:
    """1 where there are digits and they add up to the prompt's."""
    return float(sum_of(answer) == DIGITS.index(prompt.token_ids[0]))


def sum_of(answer: tuple[int, ...]) -> int:
    """What an answer's digits add up to; -1 without digits."""
    digits = [DIGITS.index(token) for token in answer if token != EOS]
    return sum(digits) if digits else -1


def answer_log_probs(loaded: LoadedModel, prompt: Prompt) -> list[Tensor]:
    """Token log-probabilities of every possible answer, from the plain model, one answer at a time."""
    found = []
    for answer in ANSWERS:
        ids = torch.tensor([prompt.token_ids + answer])
        table = loaded.model(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(prompt.token_ids) - 1
        found.append(torch.stack([table[start + i, token] for i, token in enumerate(answer)]))
    return found


def graded(group: Group) -> Group:
    """The group with its verdicts."""
    rewards = [reward(group.prompt, completion.token_ids) for completion in group.completions]
    return Group(group.prompt, group.completions, tuple(Verdict(value, value == 1.0) for value in rewards))


def population(loaded: LoadedModel, prompt: Prompt) -> Group:
    """Every answer as often as the uniform policy says it: 16 completions that *are* the distribution."""
    completions = []
    with torch.no_grad():
        log_probs = answer_log_probs(loaded, prompt)
    for answer, logp in zip(ANSWERS, log_probs, strict=True):
        count = float(logp.sum().exp()) * 4**MAX_TOKENS
        assert abs(count - round(count)) < 1e-4, "only a uniform next token makes whole numbers of copies"
        reason = StopReason.EOS if answer[-1] == EOS else StopReason.MAX_TOKENS
        numbers = logp.float().numpy()
        completions += [Completion(answer, numbers, np.zeros_like(numbers), reason, "")] * round(count)
    return graded(Group(prompt, tuple(completions)))
