from __future__ import annotations

import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from heliostat.report.html.markup import join
from heliostat.report.sections.wall import marked


@given(st.text(alphabet="ab c<&.\n", max_size=60))
def test_marking_never_changes_the_text(text: str) -> None:
    html = join(marked(text))
    assert unescape(re.sub("</?mark>", "", html)) == text


def test_the_second_time_is_marked_and_the_first_is_not() -> None:
    assert join(marked("a b c d. a b c d! e")) == "a b c d. <mark>a b c d</mark>! e"
    assert "<mark>" not in join(marked("a b c a b c x y"))
    assert join(marked("no " * 7)) == "no <mark>no no no no no no</mark> "


def test_hostile_text_stays_text() -> None:
    assert "<script" not in join(marked("<script> alert ( 1 ) </script> " * 3))
