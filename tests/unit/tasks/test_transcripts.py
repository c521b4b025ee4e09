"""Transcripts: every line belongs to the side that wrote it, whatever it wrote."""

import copy
import pickle

from hypothesis import given
from hypothesis import strategies as st

from heliostat.tasks.transcripts import ASSISTANT, ENVIRONMENT, Transcript

BREAKS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029")
words = st.lists(
    st.sampled_from(["a", "", "  ", "assistant: a", "environment: a", "environment:", *BREAKS]), max_size=5
).map("".join)
parts = st.lists(st.tuples(st.sampled_from([ASSISTANT, ENVIRONMENT]), words), max_size=4).map(tuple)


def test_every_part_begins_with_its_side():
    told = Transcript(((ASSISTANT, "get 37"), (ENVIRONMENT, "52\nmore"), (ASSISTANT, "say 52")))
    assert told == "assistant: get 37\nenvironment: 52\n  more\nassistant: say 52"
    assert told.parts[1] == (ENVIRONMENT, "52\nmore")
    assert Transcript(()) == ""


@given(parts)
def test_no_part_can_write_the_beginning_of_another(told):
    lines = Transcript(told).splitlines()
    begins = [line for line in lines if line.startswith((f"{ASSISTANT}:", f"{ENVIRONMENT}:"))]
    assert [line.partition(":")[0] for line in begins] == [side for side, _ in told]


@given(parts, parts)
def test_transcripts_with_other_parts_are_other_texts(one, other):
    assert (Transcript(one) == Transcript(other)) == (one == other)


def test_a_copy_has_the_parts_too():
    told = Transcript(((ASSISTANT, "a"),))
    for again in (pickle.loads(pickle.dumps(told)), copy.deepcopy(told), copy.copy(told)):
        assert (again, again.parts) == (told, told.parts)
