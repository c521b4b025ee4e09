import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.models.loading.tiny import BOS, IM_END, IM_START, SEP, SPECIAL_TOKENS, TOKENIZER_PATH, tiny_tokenizer

TOKENIZER = tiny_tokenizer(512)


def pieces(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(text, add_special_tokens=False))


@pytest.mark.slow
def test_committed_file_is_what_the_script_builds_whatever_the_hash_seed():
    environment = os.environ | {"PYTHONHASHSEED": "12345", "RAYON_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "heliostat.models.loading.build_tokenizer", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")


def test_committed_file_is_small():
    assert TOKENIZER_PATH.stat().st_size <= 60_000
    assert len(TOKENIZER) == 512


def test_every_digit_is_its_own_token():
    for token in TOKENIZER.get_vocab():
        assert token.isdigit() == any(character.isdigit() for character in token)
        assert not token.isdigit() or len(token) == 1


@pytest.mark.parametrize(
    ("text", "num_tokens"),
    [
        ("State the final answer to the following arithmetic problem:", 8),
        ("State the final answer to the following arithmetic problem: 47 + 58 =", 8),
        ("47 + 58", 5),
        ("47 + 58 = 105", 9),
        ("(3 + 4) * 12", 8),
        ("-12", 3),
    ],
)
def test_arithmetic_is_cheap(text: str, num_tokens: int):
    assert len(pieces(text)) <= num_tokens


def test_no_lone_space_between_digits_and_operators():
    for operator in "+-*/":
        assert pieces(f"47 {operator} 58") == ["4", "7", f"Ġ{operator}Ġ", "5", "8"]


@pytest.mark.slow
@given(st.text())
def test_any_text_comes_back_exactly(text: str):
    if any(token in text for token in SPECIAL_TOKENS):
        return
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


def test_every_byte_has_a_token():
    from tokenizers import pre_tokenizers

    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(TOKENIZER.get_vocab())
    assert TOKENIZER.unk_token_id is None


def test_plain_prompts_are_framed_and_chat_markers_are_single_tokens():
    framed = TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode("1"))
    assert framed == [BOS, "1", SEP]
    for marker in (IM_START, IM_END):
        assert len(TOKENIZER.encode(marker, add_special_tokens=False)) == 1


def test_special_ids_come_first_and_are_marked_special():
    state = json.loads(TOKENIZER_PATH.read_text())
    assert [(token["id"], token["content"]) for token in state["added_tokens"]] == list(enumerate(SPECIAL_TOKENS))
    assert all(token["special"] for token in state["added_tokens"])
