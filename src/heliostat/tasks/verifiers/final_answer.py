r"""Extract the final answer that a text commits to.

A text may be the bare answer, or sentences around one. The first of these that is present counts:

    the last \boxed{…}; several side by side are a list
    the text after "the answer is", "Answer:" or "####"
    the last $…$, \(…\) or \[…\]; several joined by commas, "and" or "or" are a list
    the whole text

A dollar sign before a price delimits nothing: ``$7, or 8, or $9`` is bare text.

Left out: the meaning of the answer (``math_equivalence``). Time is linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from heliostat.tasks.verifiers.notation import ESCAPED_TWICE, canonical, tidy

_DELIMITER = re.compile(r"\\[\[\]()]|\$\$|\\.|\$", re.DOTALL)
_CLOSERS = {r"\[": r"\]", r"\(": r"\)", "$$": "$$", "$": "$"}
_BOX = re.compile(r"\\f?boxed ?\{|\\fbox ?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANCHOR = re.compile(
    r"####|(?:final |correct |right )?answers?(?: (?:to|for|of) [^.:=\n]{1,60}?)? ?"
    r"(?:(?:is|are|equals)(?![A-Za-z]):?|:|=)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:so|thus|hence|therefore|then|finally|and|we (?:get|have|find|obtain|conclude)|this (?:gives|is|equals)"
    r"|which is|it is|it's|that is|i get|the (?:result|solution|value|total|sum|probability)(?: set)? (?:is|:|=)"
    r"|option|choice|\\therefore|=|\\approx)(?![A-Za-z])[ ,:]*",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"(?:[\s,;.:$&]|\\[,;! ]|\\q?quad|\\[()\[\]]|\\text ?\{ ?(?:and|or),? ?\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))*"
)
_GUESS_AFTER = re.compile(r"\$?[\s,;]*(?:\\text ?\{)?\s*(?:or|and)\s*\}?\s*[-+$\\(]?\d", re.IGNORECASE)
_GUESS_BEFORE = re.compile(r"\d[\s,;]*(?:or|and)\s*$", re.IGNORECASE)
MAX_PIECES = 64  # so many answers side by side are none
_AFTERWARDS = re.compile(r"\. I hope (?:it|this|that) is correct|<\|(?:im_start|im_end|endoftext|eot_id)\|>")
_CONCLUSION = re.compile(
    r"(?<![A-Za-z])(?:is|are|equals|by|=) +(\\?\$?[-+]?[\d.,/^*+() -]*\d\)?[!%]?(?:\\%)?(?: [A-Za-z]{1,12})?)\s*\.?\s*$"
)
_DENIAL = re.compile(r"(?:\b(?:not|never|cannot be|nor|neither)|n't(?: be)?)\s*$", re.IGNORECASE)
_MARK_AFTER = re.compile(r"(?:\$|\\\))?\s*(\\?%|\^ ?\{? ?\\circ ?\}?|°|\\degree)")
_REMARK = re.compile(r" \((?:since|because|as|i\.e\.|check)\b[^()]*\)\.?$")
_LAST_WORDS = re.compile(r"(?:\$|\\\))?\s*([A-Za-z][A-Za-z /^0-9²³]{0,40})\.?\s*$")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text with its delimiters, and the part between them."""

    start: int
    end: int
    inside: int
    inside_end: int

    def content(self, text: str) -> str:
        return text[self.inside : self.inside_end].strip()


@dataclass(frozen=True, slots=True)
class Committed:
    """The answer that a text commits to, tidied.

    Attributes:
        text: the answer without box, delimiters and lead-in; empty: it commits to none.
        bare: whether nothing delimits it, so that it may be a sentence.
    """

    text: str
    bare: bool = False


def commit(text: str) -> tuple[Committed, ...]:
    """Find the answer in a text: one, or where it has several boxes, the last one and all of them as a list.

    Limits:
        A box that is never closed is none; an empty last box commits to nothing. A denial right before the answer
        (``not $5$``), or a guess joined to it (``$5$ or 6``), commits to nothing either.
    """
    text = ESCAPED_TWICE.sub(r"\\", _AFTERWARDS.split(text, maxsplit=1)[0])
    if spans := _boxes(text):
        last, every = _joined(text, spans), _listed(text, spans)
        return (Committed(last), Committed(every)) if last != every and last else (Committed(last),)
    if anchors := list(_ANCHOR.finditer(text)):
        text = text[anchors[-1].end() :]
    if spans := _delimited(text):
        if conclusion := _CONCLUSION.search(text[spans[-1].end :][-300:]):
            return (Committed(tidy(conclusion[1])),)
        return (Committed(_joined(text, spans)),)
    bare = _bare(text)
    if is_prose(bare) and (conclusion := _CONCLUSION.search(bare[-300:])):
        return (Committed(conclusion[1].strip(), bare=True),)
    return (Committed(bare, bare=True),)


def _boxes(text: str) -> list[Span]:
    r"""Yield every outermost ``\boxed{…}``."""
    spans: list[Span] = []
    braces: list[tuple[int, int]] = []  # that are open: start of the box or -1, start of the content
    for match in re.finditer(rf"{_BOX.pattern}|{_BRACE.pattern}", text, re.DOTALL):
        token = match[0]
        if token == "}" and braces:
            start, inside = braces.pop()
            if start >= 0:
                while spans and spans[-1].start > start:
                    spans.pop()
                spans.append(Span(start, match.end(), inside, match.start()))
        elif token[-1] == "{" and token != r"\{":
            braces.append((match.start() if len(token) > 1 else -1, match.end()))
    return spans


def _delimited(text: str) -> list[Span]:
    """Yield every piece of delimited mathematics that is not empty."""
    spans: list[Span] = []
    opened: tuple[str, int, int] | None = None
    for match in _DELIMITER.finditer(text):
        token = match[0]
        if opened is not None and token == _CLOSERS[opened[0]]:
            span = Span(opened[1], match.end(), opened[2], match.start())
            if token != "$" or _is_mathematics(text, span):
                spans.append(span)
                opened = None
                continue
        if token in _CLOSERS and (opened is None or opened[0] == "$"):
            opened = (token, match.start(), match.end())
    return [span for span in spans if span.content(text)]


def _is_mathematics(text: str, span: Span) -> bool:
    """Return whether two dollar signs delimit mathematics, rather than precede prices."""
    content = text[span.inside : span.inside_end]
    spaced = content[:1].isspace(), content[-1:].isspace()
    if spaced == (False, True) or text[span.end : span.end + 1].isdigit() or "\n\n" in content:
        return False
    return len(content) < 2000 and not is_prose(content)


def _joined(text: str, spans: list[Span]) -> str:
    """Join the last piece with those next to it, and a sign after it."""
    if not spans[-1].content(text):
        return ""
    first = len(spans) - 1
    while first > max(0, len(spans) - MAX_PIECES) and _BETWEEN.fullmatch(
        text, spans[first - 1].end, spans[first].start
    ):
        first -= 1
    start, end = spans[first].start, spans[-1].end
    before, after = text[max(0, start - 40) : start], text[end : end + 60]
    if _DENIAL.search(before.rstrip("$ ")) or _GUESS_BEFORE.search(before) or _GUESS_AFTER.match(after):
        return ""
    mark = _MARK_AFTER.match(after) or (_LAST_WORDS.match(after) if len(text) - end < 60 else None)
    sign = "" if mark is None else mark[1] if mark[1][0] in r"\^%°" else f" {mark[1]}"
    return _listed(text, spans[first:]) + tidy(sign).rjust(len(sign))


def _listed(text: str, spans: list[Span]) -> str:
    if len(spans) >= MAX_PIECES:
        return ""
    pieces = (tidy(span.content(text)).strip(" .,;") for span in spans)
    return ", ".join({canonical(piece): piece for piece in pieces if piece}.values())


def _bare(text: str) -> str:
    """Strip the lead-in of a text, and the paragraphs after it that contain no numbers."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if len(paragraphs) > 1 and not any(re.search(r"[\d\\$=]", part) for part in paragraphs[1:]):
        paragraphs = paragraphs[:1]
    text = _REMARK.sub("", tidy(" ".join(paragraphs)))
    start = 0
    while (lead := _LEAD.match(text, start)) and lead.end() < len(text):
        start = lead.end()
    return re.sub(r"(?<=[^.])[.,;:]$", "", text[start:].strip()).strip()


_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_FUNCTIONS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"})
_FUNCTIONS |= {
    "log",
    "ln",
    "exp",
    "sqrt",
    "pi",
    "lim",
    "max",
    "min",
    "gcd",
    "lcm",
    "mod",
    "det",
    "infinity",
    "and",
    "or",
}
_OPERATORS = frozenset("+-*/=<>^|,;()")


def is_prose(text: str) -> bool:
    """Return whether a tidy text has words that are no mathematics: more than one, or one before a number.

    A word after a number may be its unit, words between operators are products of variables (``ab + bc``), and a text
    of words alone is no sum to work out but no riddle either: it is compared as it stands.
    """
    text = re.sub(r"\\(?:text|mathrm|mbox|operatorname|begin|end|textbf|mathbf)\*? ?\{[^{}]*\}", " ", text)
    text = re.sub(r"\\[A-Za-z]+", " ", re.sub(r"([+\-*/=<>^|,;()])", r" \1 ", text))
    tokens = [token.strip("$?!.:") for token in text.split()]
    words = [number for number, token in enumerate(tokens) if _is_word(tokens, number, token)]
    if not words:
        return False
    return len(words) > 1 or any(any(map(str.isdigit, token)) for token in tokens[words[0] + 1 :])


def _is_word(tokens: list[str], number: int, token: str) -> bool:
    if not _WORD.fullmatch(token) or token.lower() in _FUNCTIONS:
        return False
    around = tokens[max(0, number - 1) : number] + tokens[number + 1 : number + 2]
    return not around or not all(other in _OPERATORS for other in around)
