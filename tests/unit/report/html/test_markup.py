"""Escaping: whatever text goes in, exactly that text is what a parser reads back."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from heliostat.printed import is_hidden, visible
from heliostat.report.html.markup import TEXT_ONLY, Html, data_script, element, environment, escape, fill

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\'"'


class Reader(HTMLParser):
    """Collects what a parser sees: elements with attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(str(markup))
    reader.close()
    return reader


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_text_comes_back_as_text_and_makes_no_element(text: str) -> None:
    seen = read(element("p", text, title=text))
    assert seen.text == text
    marks = [("bdi", {"class": "unseen", "data-code": f"U+{ord(one):04X}"}) for one in text if is_hidden(one)]
    assert seen.elements == [("p", {"title": visible(text)}), *marks]


@pytest.mark.parametrize("name", sorted(TEXT_ONLY))
def test_where_no_element_may_stand_hidden_characters_are_escapes(name: str) -> None:
    assert read(element(name, "a\u202eb<i>", ["\u200b"])).elements == [(name, {})]
    assert element(name, "a\u202eb") == f"<{name}>a\\u202eb</{name}>"


def test_hidden_characters_are_isolated_and_shown() -> None:
    assert escape("a\u202eb") == 'a<bdi class="unseen" data-code="U+202E">\u202e</bdi>b'
    assert escape("\u200b\U000e0041") == (
        '<bdi class="unseen" data-code="U+200B">\u200b</bdi><bdi class="unseen" data-code="U+E0041">\U000e0041</bdi>'
    )
    assert ".unseen::before" in files("heliostat.report.html").joinpath("style.css").read_text(encoding="utf-8")


def test_hostile_text_stays_text_but_markup_stays_markup() -> None:
    assert [tag for tag, _ in read(element("p", HOSTILE)).elements] == ["p"]
    assert [tag for tag, _ in read(element("p", Html("<b>x</b>"))).elements] == ["p", "b"]


def test_control_characters_become_visible_and_surrogates_writable() -> None:
    assert escape("\x1b[31m\x00\r\x7f") == "␛[31m␀␍␡"
    assert escape("tab\tline\n") == "tab\tline\n"
    escape("lone \ud800 surrogate").encode("utf-8")


def test_attributes_are_spelled_as_in_html() -> None:
    markup = element("line", class_="a b", aria_label="x", viewBox="0 0 1 1", hidden=True, open=False, id=None)
    assert markup == '<line class="a b" aria-label="x" viewBox="0 0 1 1" hidden></line>'
    assert element("br") == "<br>"


@pytest.mark.parametrize("text", [HOSTILE, "<!--<script>", "]]>", "\u2028\u2029", "\ud800"])
def test_data_scripts_cannot_be_left_and_carry_their_data(text: str) -> None:
    script = data_script("figures", {"label": text})
    body = script.removeprefix('<script type="application/json" id="figures">').removesuffix("</script>")
    assert not set("<>&\u2028\u2029") & set(body)
    body.encode("utf-8")
    assert json.loads(body) == {"label": text}


def test_data_scripts_refuse_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        data_script("figures", [float("nan")])


# -- templates ---------------------------------------------------------------------------------------------------------


def filled(source: str, **values: object) -> str:
    return environment().from_string(source).render(**values)


@pytest.mark.slow
@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_a_template_shows_text_as_text_wherever_it_puts_it(text: str) -> None:
    source = """
        {% macro link(text) %}<a title="{{ text }}">{{ text }}</a>{% endmacro %}
        <p {% if true %}lang="{{ text }}"{% endif %} class="a {{ text }}">{{ text }}{{ link(text) }}</p>
        {% for one in [text] %}<svg><title class="{{ one }}">{{ one }}</title></svg>{{ one }}{% endfor %}
    """
    seen, shown = read(filled(source, text=text)), visible(text)
    assert [one for one in seen.elements if one[0] != "bdi"] == [
        ("p", {"lang": shown, "class": f"a {shown}"}),
        ("a", {"title": shown}),
        ("svg", {}),
        ("title", {"class": shown}),
    ]
    assert seen.text == text + text + shown + text
    assert sum(name == "bdi" for name, _ in seen.elements) == 3 * sum(map(is_hidden, text))


def test_a_template_escapes_all_but_markup() -> None:
    assert filled("<b>{{ it }}</b>", it=HOSTILE) == element("b", HOSTILE)
    assert filled("<b>{{ it }}</b>", it=Html("<i>x</i>")) == "<b><i>x</i></b>"
    assert (
        filled("<b id='{{ it }}'>{{ nothing }}{{ number }}</b>", it="'>", nothing=None, number=3)
        == "<b id='&#x27;&gt;'>3</b>"
    )


def test_lines_of_a_template_are_joined_and_those_of_a_value_are_not() -> None:
    assert filled("<pre>\n  {{ text }}\n</pre>\n", text="a\n  b ") == "<pre>a\n  b </pre>"


def test_a_template_that_asks_for_what_it_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="notes"):
        fill("missing.html")


@pytest.mark.parametrize("name", environment().list_templates())
def test_attributes_of_templates_are_quoted(name: str) -> None:
    """Escaping protects a quoted value only."""
    source = environment().loader.get_source(environment(), name)[0]
    assert not re.search(r"=\s*\{\{", re.sub(r"\{%.*?%\}", "", source))
