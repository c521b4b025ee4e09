"""Rebuild the tiny model's tokenizer, byte for byte: ``python -m heliostat.models.loading.build_tokenizer``.

Byte-level byte-pair encoding, trained on questions and answers of reasoning-gym's arithmetic family. Three choices:

- *Digits stand alone*, and an operator with its spaces is one piece, so ``47 + 58`` is five tokens (``4 7 " + " 5 8``)
  and every number is spelled the same way wherever it occurs. A model of a million parameters needs
  this to learn carries.
- *Words may merge across spaces*, so that a question's fixed wording costs one or two tokens instead of a dozen.
- *Every byte is a token*, so any text can be written, and decoding gives it back exactly.

Left out: normalisation (it would break the exact round trip) and any attempt at good compression of ordinary prose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from heliostat.models.loading.tiny import BOS, SEP, SPECIAL_TOKENS, TOKENIZER_PATH
from heliostat.storage import publish_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 512
MAX_TOKEN_CHARS = 32  # the longest piece of fixed wording that may become one token
SEED = 7
NUM_SUMS = 200  # per operator: divisions are too rare in reasoning-gym for " / " to become a token
# Items per data set. The weights decide whose wording gets the few merges there are: the demo's task comes first.
CORPUS = {
    "chain_sum": 400,
    "basic_arithmetic": 200,
    "spell_backward": 200,
    "gcd": 100,
    "lcm": 100,
    "products": 100,
    "leg_counting": 100,
    "letter_counting": 100,
    "simple_equations": 100,
    "gsm_symbolic": 100,
    "base_conversion": 60,
    "fraction_simplification": 60,
    "decimal_chain_sum": 60,
    "count_bits": 60,
    "countdown": 40,
    "complex_arithmetic": 40,
    "count_primes": 40,
    "number_filtering": 40,
    "prime_factorization": 40,
}


def corpus() -> Iterator[str]:
    """Yield questions, answers, both on one line (as in a worked solution), and every operator often enough."""
    import reasoning_gym

    for operator in "+-*/":
        yield from [f"1 {operator} 2 = 3"] * NUM_SUMS

    for name, size in CORPUS.items():
        for item in reasoning_gym.create_dataset(name, size=size, seed=SEED):
            question, answer = item["question"], str(item["answer"])
            yield from (question, answer, f"{question.strip()} {answer}")


def build() -> Tokenizer:
    """Train the tokenizer from scratch (a few seconds)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.Split(Regex(r" ?[-+*/=^()<>×÷] ?"), "isolated"),
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_CHARS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # A plain prompt is `bos text sep`: the completion follows `sep`, regardless of the text's end.
    ids = [(token, tokenizer.token_to_id(token)) for token in (BOS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {SEP}", special_tokens=ids)
    return tokenizer


def main() -> None:
    """Write the tokenizer, or with ``--check`` only compare it with the committed file."""
    parser = argparse.ArgumentParser(description="rebuild the tiny model's tokenizer")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the committed file differs")
    text = build().to_str(pretty=True) + "\n"
    if not parser.parse_args().check:
        publish_file(TOKENIZER_PATH, text)
    elif TOKENIZER_PATH.read_text(encoding="utf-8") != text:
        sys.exit(f"{TOKENIZER_PATH} differs from a fresh build")


if __name__ == "__main__":
    main()
