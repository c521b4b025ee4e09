"""A prefix never says the answer and never ends the turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.traces.spans import answer_start, longest_prefix


@pytest.mark.parametrize(
    ("text", "answer", "question", "marker", "given_away"),
    [
        ("47+58=105, 105-3=102\n= 102", "102", "47 + 58 - 3", "= ", "47+58=105, 105-3="),  # said before the marker
        ("7+8=15-3=12", "12", "7 + 8 - 3", "=", "7+8=15-3="),
        ("5+4=9-4=5", "5", "5 + 4 - 4", "=", "5+4=9-4="),  # the question says it: only its last statement counts
        ("9-4=5\n= 5", "5", "5 + 4 - 4", "= ", "9-4="),  # a restatement right before the marker counts too
        ("so it is 41. The answer: 41", "41", "q", "answer: ", "so it is "),
        ("it is 141 and then 41", "41", "q", "", "it is 141 and then "),  # part of another number is not the answer
        ("no answer here", "41", "q", "", None),
        ("x = 1 so", None, "q", "= ", "x = "),
        ("nothing", None, "q", "= ", None),
    ],
)
def test_where_the_answer_begins(text, answer, question, marker, given_away):
    start = answer_start(text, answer, question, marker)
    assert start == (None if given_away is None else len(given_away))
    assert start is None or text[:start] == given_away


def decode(ids):
    return "".join(chr(token) for token in ids)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab=1 ", max_size=30), st.integers(0, 30), st.integers(0, 40), st.sampled_from([None, 3, 7]))
def test_the_longest_prefix_is_the_longest_allowed_one(text, start, room, end_at):
    ids = [ord(letter) for letter in text] + [0]
    if end_at is not None:
        ids.insert(min(end_at, len(ids)), 0)
    length = longest_prefix(ids, decode, start, {0}, room)

    def allowed(n):
        return n < len(ids) and n <= room and 0 not in ids[:n] and len(decode(ids[:n])) <= start

    assert length == max(n for n in range(len(ids)) if allowed(n))


def test_without_a_known_answer_nothing_is_given():
    assert longest_prefix([1, 2, 3], decode, None, {0}, 10) == 0
    assert longest_prefix([1], decode, 5, {0}, 10) == 0
    assert longest_prefix([1, 2, 3], decode, 5, {0}, -4) == 0
