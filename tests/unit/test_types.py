"""Values that cross packages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.types import Cut, Problem, Prompt


@given(kind=st.sampled_from(["prefix", "hint", "unrelated", "a:b"]), num_tokens=st.integers(0, 10**6))
def test_a_cut_is_read_back_from_its_stored_form(kind, num_tokens):
    cut = Cut(kind, num_tokens)
    assert Cut.parse(str(cut)) == cut


def test_an_empty_text_is_no_cut_and_another_one_is_refused():
    assert Cut.parse("") is None
    for text in ("prefix", "prefix:", "prefix:-1", "prefix:x"):
        with pytest.raises(ValueError, match="is no cut"):
            Cut.parse(text)


def test_prompts_are_compared_with_prompts_of_the_same_cut():
    problem = Problem("p", "t", "1 + 1 =")
    plain, cut = Prompt(problem, (1,)), Prompt(problem, (1,), (2, 3), Cut("prefix", 2))
    assert (plain.group_key, cut.group_key) == (("p", ""), ("p", "prefix:2"))
