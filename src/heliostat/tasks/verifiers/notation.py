r"""Normalize notation that people and models write in many ways: ``½``, ``1\,000``, ``**42**``, ``\dfrac``, ``−``.

    tidy(text)       LaTeX in ASCII without typography, for a parser
    canonical(text)  a key: two answers that differ in layout alone have the same

Left out: finding the answer (``final_answer``), its unit (``units``), and comparing it (``math_equivalence``).
Everything takes time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = {
    **dict.fromkeys("−–‐‑‒﹣", "-"),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’", "'"),
    "⁄": "/",
    "∕": "/",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": r"\div ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "⩽": r"\le ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R} ",
    "ℤ": r"\mathbb{Z} ",
    "ℕ": r"\mathbb{N} ",
    "ℚ": r"\mathbb{Q} ",
    "ℂ": r"\mathbb{C} ",
    "→": r"\to ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∑": r"\sum ",
    "∫": r"\int ",
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigmaf sigma tau upsilon"
)
_GREEK += " phi chi psi omega"
_SYMBOLS |= {chr(0x3B1 + number): f"\\{name} " for number, name in enumerate(_GREEK.split()) if name != "omicron"}
_CAPITALS = zip(
    "ΓΔΘΛΞΠΣΦΨΩ", ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"), strict=True
)
_SYMBOLS |= {letter: f"\\{name} " for letter, name in _CAPITALS}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))

_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|(\\[A-Za-z]+ ?)|(?=\())")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_BOLD = re.compile(
    r"(?<![\w)}\]*])\*\*(?=[^\s*])([^*]+)(?<=\S)\*\*(?![\w*])|(?<![\w])__(?=[^\s_])([^_]+)(?<=\S)__(?!\w)"
)
_TAG = re.compile(r"</?(?:answer|final_answer|solution|output|result|b|i|strong|em|p)>", re.IGNORECASE)
_GROUPED = re.compile(r"(?<![\d.,^_{/])(\d{1,3})((?: \d{3})+|(?:\\[,; ]\d{3})+|(?:~\d{3})+)(?![\d])(?! ?\d)")
_THOUSANDS = re.compile(r"(?<![\d.])(?<!\d,)([1-9]\d{0,2}(?:,\d{3})+)(?!,?\d)")
_NOTHING = re.compile(r"(?<!\\)\\!\s*")
_BRACED_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3})")
ESCAPED_TWICE = re.compile(  # as JSON does; two backslashes before anything else end a row of a matrix
    r"(?<!\\)\\\\(?=(?:f?boxed|[dt]?frac|sqrt|text|left|right|begin|end|pi|cdot|times|infty|cup|pm|le|ge|in)(?![A-Za-z]))"
)
_BRACED = re.compile(r"\{([,:.;])\}")
_SPACES = re.compile(r"(\\\\)|\\[,;:!> ]|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}|~|\s+")
_RENAMED = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\varnothing": r"\emptyset",
    r"\leq": r"\le",
    r"\leqslant": r"\le",
    r"\geq": r"\ge",
    r"\geqslant": r"\ge",
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lparen": "(",
    r"\rparen": ")",
    r"\colon": ":",
    r"\displaystyle": "",
    r"\textstyle": "",
    r"\limits": "",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\degree": r"^\circ",
    r"\langle": "(",
    r"\rangle": ")",
    r"\left": "",
    r"\right": "",
    r"\bigl": "",
    r"\bigr": "",
    r"\big": "",
    r"\Big": "",
    r"\dots": r"\ldots",
    r"\cdots": r"\ldots",
    r"\implies": r"\Rightarrow",
    r"\textdollar": r"\$",
    r"\textdegree": r"^\circ",
    r"\percent": r"\%",
    r"\sfrac": r"\frac",
    r"\nicefrac": r"\frac",
}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_REPEATING = re.compile(r"(?<!\d)(\d{0,12})\.(\d{0,12})\\(?:overline|bar|dot) ?\{?(\d{1,12})\}?(?:\\ldots)?")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,6})(?!\w|\.\d)")
_TIMES_TEN = re.compile(r"(?<=\d) ?[xX*] ?10 ?(?:\^|\*\*)")
_MIXED = re.compile(r"(?<![\d.,^_{/}] )(?<![\d.,^_{/}])(\d+) (\d+)/(\d+)(?![\d/]|\.\d)")
_HALF_CIRCLE = re.compile(r"\^ ?\{ ?\\circ ?\}")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(?:[bvBV]?matrix|smallmatrix|pmatrix|array)\*?\}(?:\{[lcr|\s]*\})?")
_AROUND_MATRIX = re.compile(r"[(\[] ?(\\begin\{pmatrix\}.*?\\end\{pmatrix\}) ?[)\]]")

_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal|cal)|[mh]box|operatorname|boldsymbol|bm|emph)"
    r"\*? ?\{"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_OR = re.compile(r",? ?(?:\\text ?\{ ?,? ?or ?\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])) ?")
_AND = re.compile(r",? ?(?:\\text ?\{ ?,? ?and ?\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])) ?|; ?")


def tidy(text: str) -> str:
    """Rewrite ``text`` in one typography: LaTeX commands for symbols, plain digits, no markdown, no layout.

    Limits:
        Groups of three digits are thousands: ``1,000`` and ``1 000`` are 1000; ``1 2`` and ``1, 234`` are two numbers.
    """
    text = _BOLD.sub(lambda match: match[1] or match[2], text.replace("`", ""))
    text = _plain_characters(_TAG.sub(" ", text))
    text = re.sub(r"\\(?:left|right)\.", "", text)
    text = _COMMAND.sub(lambda match: _RENAMED.get(match[0], match[0]), text)
    text = _NOTHING.sub("", text)
    text = _BRACED_COMMA.sub(",", text)
    text = _THOUSANDS.sub(_ungrouped, text)
    text = _GROUPED.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), text)
    text = _BRACED.sub(r"\1", text)
    text = _HALF_CIRCLE.sub(r"^\\circ", text)
    text = _SPACES.sub(lambda match: match[1] or " ", text)  # a row of a matrix ends in two backslashes
    text = _REPEATING.sub(_repeating, text)
    text = _TIMES_TEN.sub(r"\\times 10^", text)
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _ENVIRONMENT.sub(r"\\\1{pmatrix}", text)
    return _AROUND_MATRIX.sub(r"\1", text).strip()


def canonical(text: str) -> str:
    """Return a key of a tidy answer; equal if answers differ only in layout, wrappers, a full stop or a word's case.

    Limits:
        Single letters keep their case (``A`` is not ``a``), words lose it; the order of everything stays.
    """
    text = unwrapped(listed(text)).replace("$", "")
    text = re.sub(r"[A-Za-z]{2,}", _folded, text)
    text = re.sub(r"\s+", " ", text).strip(" .,;:")
    text = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])|(?<=\d) (?=[A-Za-z])", "", text)
    text = re.sub(r"([\^_])\{([0-9A-Za-z])\}", r"\1\2", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    return re.sub(r"^\(([A-Za-z])\)$|^([A-Za-z])\)$", lambda match: match[1] or match[2], text)


def listed(text: str) -> str:
    r"""Replace every "and" and "or" of a list by a comma; between inequalities "or" becomes ``\lor``."""
    return _AND.sub(", ", _OR.sub(r" \\lor " if _RELATION.search(text) else ", ", text))


def unwrapped(text: str) -> str:
    r"""Remove ``\text{…}`` and other font wrappers, and keep their content.

    Limits:
        A wrapper that is never closed is dropped.
    """
    out: list[str] = []
    closers: list[bool] = []  # of every open brace: whether it belongs to a wrapper
    position = 0
    for match in re.finditer(rf"{_WRAPPER.pattern}|\\.|[{{}}]", text, re.DOTALL):
        out.append(text[position : match.start()])
        position, token = match.end(), match[0]
        if token == "}":
            out.append("" if closers and closers.pop() else token)
        elif token.endswith("{") and token != r"\{":
            closers.append(len(token) > 1)
            out.append("" if len(token) > 1 else token)
        else:
            out.append(token)
    return "".join(out) + text[position:]


def _plain_characters(text: str) -> str:
    if text.isascii():
        return text
    text = _VULGAR.sub(lambda match: _fraction(match[0]), text)
    text = _RAISED.sub(lambda match: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, match[0])) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + "".join(map(_SUBSCRIPTS.__getitem__, match[0])) + "}", text)
    text = "".join(_SYMBOLS.get(character) or _character(character) for character in text)
    return _ROOT.sub(_root, text).replace("√", r"\sqrt ")


def _character(character: str) -> str:
    if character in _SYMBOLS or character.isascii():
        return _SYMBOLS.get(character, character)
    if (digit := unicodedata.digit(character, None)) is not None and unicodedata.category(character) == "Nd":
        return str(digit)
    wide = 0xFF01 <= ord(character) <= 0xFF5E or 0x1D400 <= ord(character) <= 0x1D7FF  # full width; styled letters
    return unicodedata.normalize("NFKC", character) if wide else character


def _fraction(character: str) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _root(match: re.Match[str]) -> str:
    index = {"√": "", "∛": "[3]", "∜": "[4]"}[match[1]]
    inside = match[2] or (match[3] or "").strip()
    return rf"\sqrt{index}{{{inside}}}" if inside else rf"\sqrt{index}"


def _ungrouped(match: re.Match[str]) -> str:
    before, after = match.string[max(0, match.start() - 2) : match.start()], match.string[match.end() : match.end() + 2]
    is_pair = before[-1:] in ("(", "[") or before == r"\{"
    return match[1] if is_pair and after.lstrip("\\")[:1] in (")", "]", "}") else match[1].replace(",", "")


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match.groups()
    denominator = 10 ** len(fixed) * (10 ** len(period) - 1)
    numerator = int(f"{whole or 0}{fixed}{period}") - int(f"{whole or 0}{fixed}")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _folded(match: re.Match[str]) -> str:
    start, word = match.start(), match[0]
    before = match.string[max(0, start - 2) : start].strip()[-1:]
    if before == "\\" or (len(word) == 2 and before.isdigit()):  # commands, and units: mW is not MW
        return word
    return word.casefold()
