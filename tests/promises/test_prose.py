"""The promise: public sentences use the field's words, and docstrings of public functions begin with a verb.

The test reads docstrings and all other texts of the package (help, errors, printed sentences), the README and the pages
of the documentation, without their code.

Left out: everything that a pattern cannot decide, like a noun at the start of a docstring, and comments.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

_THE = r"(?:an?|the|its|their|that|this|each|every)"
_TENSORS = r"(?:weights|gradients|activations|parameters|optimizer state)"
_PASSES = r"(?:steps?|runs?|updates?|forwards?|(?:forward |backward )?pass(?:es)?)"
WORDS = {
    rf"\bbehind {_THE} (?:step|update|prefix|prompt|answer|text|token|rollback)s?\b": "after",
    r"\b(?:weights|policy|model|rates?|steps?|settings|ones?) of now\b|\bof now\b": "current",
    r"\bcut (?:over|across) (?:the |several |all )?(?:ranks|GPUs|processes|them)\b": "sharded",
    r"\bhand(?:s|ed|ing)?[- ]overs?\b": "sync (weights), pass (arguments)",
    r"\bt(?:ake|akes|aken|ook|aking) back\b": "roll back",
    r"\b(?:step's|run's|logged) numbers\b|\bnumbers of (?:the|a|each|every) (?:step|run)\b": "metrics",
    rf"\btypes? of (?:{_THE} |all )?(?:\w+ )?{_TENSORS}|\b(?:weights'|shorter) (?:own )?types?\b": "dtype",
    r"\boperations (?:of (?:a|the|one) (?:forward|backward|step)|(?:per|a) (?:second|token))\b": "FLOPs",
    r"\bbeside (?:the |an? )?(?:training|sampling|updates?|computation|operations)\b": "in parallel with",
    r"\b(?:is|are|was|were|be) told (?:of|that|when)\b": "notified",
    r"\bdearer\b": "more expensive",
    r"\bseveral-turn\b": "multi-turn",
    rf"\b(?:made|making) (?:a |an |the |its |one |no |more |further |\d+ )?{_PASSES}\b": "ran, running, took, taking",
    r"\b(?:the|their|its|our|own|every|each|other|one|of) rooms?\b(?! (?:for|in|to|left)\b)": "package",
}
"""Patterns of words with another word in the field, and that word."""

NO_VERB = re.compile(
    r"(?:What|Which|How|Where|Whose|Whatever|Everything|Something|Anything|The|An?|One|Each|Every|All)\b"
)
NO_NOUN = re.compile(r"(?:What|Whatever|Whoever|Whichever)\b")
PROPERTIES = {"property", "cached_property", "overload"}


class Finding(NamedTuple):
    """A place in a text, and what should stand there."""

    line: int
    advice: str


def words(text: str, line: int = 1) -> Iterator[Finding]:
    """Find words of the list in a text that begins at ``line``."""
    flat = re.sub(r"\s", " ", text)
    for pattern, better in WORDS.items():
        for match in re.finditer(pattern, flat, re.IGNORECASE):
            yield Finding(line + text.count("\n", 0, match.start()), f"'{match.group()}': better '{better}'")


def in_python(source: str) -> Iterator[Finding]:
    """Find words in all texts of a module, and docstrings that begin with the wrong one."""
    tree = ast.parse(source)
    for node, is_public in _definitions(tree, True):
        docstring = ast.get_docstring(node)
        if not docstring or not is_public:
            continue
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and not PROPERTIES & _decorators(node) and NO_VERB.match(docstring):
            yield Finding(node.body[0].lineno, f"'{docstring.split(maxsplit=1)[0]} ...': begin with an imperative verb")
        elif not is_function and NO_NOUN.match(docstring):
            yield Finding(node.body[0].lineno, f"'{docstring.split(maxsplit=1)[0]} ...': name the noun")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from words(node.value, node.lineno)


def _definitions(node: ast.AST, is_public: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All modules, classes and functions of a tree; what a function defines inside is not public."""
    if isinstance(node, ast.Module):
        yield node, True
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            public = is_public and not child.name.startswith("_")
            yield child, public
            yield from _definitions(child, public and isinstance(child, ast.ClassDef))
        else:
            yield from _definitions(child, is_public)


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    names = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    return {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in names}


def in_markdown(source: str) -> Iterator[Finding]:
    """Find words in a page, apart from its code."""
    blank = re.sub(r"^(```|~~~).*?^\1", lambda code: re.sub(r"[^\n]", " ", code.group()), source, flags=re.M | re.S)
    yield from words(re.sub(r"`[^`\n]*`", lambda code: "_" * len(code.group()), blank))


def findings(path: Path) -> list[str]:
    """List what is wrong in a file, as ``file:line: advice``."""
    read = in_python if path.suffix == ".py" else in_markdown
    found = sorted(read(path.read_text(encoding="utf-8")))
    return [f"{path.relative_to(ROOT).as_posix()}:{line}: {advice}" for line, advice in found]


def texts() -> list[Path]:
    """List the files whose sentences are public."""
    return sorted([*(ROOT / "src").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_sentences_use_the_fields_words():
    wrong = [line for path in texts() for line in findings(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "with the weights of now",
        "placed right behind the prompt",
        "weights are cut over the ranks",
        "the hand-over of weights",
        "handing over weights",
        "the step was taken back",
        "the step's numbers",
        "the type of the weights",
        "operations a second",
        "runs beside training",
        "the server is told of it",
        "which is dearer",
        "some several-turn\nconversations",
        "a run that made further steps",
        "the room that uses it",
    ],
)
def test_a_word_of_the_list_is_found_in_code_and_in_pages(text):
    assert len(list(words(text))) == 1
    assert len(list(in_python(f"raise ValueError({text!r})"))) == 1
    assert len(list(in_markdown(f"A sentence: {text}."))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "the class behind a name",
        "leaves no room for a completion, and none of room in memory",
        "the numbers 1 to 3",
        "a table of numbers",
        "types of weather",
        "string operations",
        "the figure beside the text",
        "unless told otherwise",
        "made of steps",
        "take it back to the shop",
        "cut off at the limit",
    ],
)
def test_ordinary_sentences_are_left_alone(text):
    assert list(words(text)) == []


def test_docstrings_are_held_to_their_first_word():
    found = list(
        in_python(
            '"""What this is."""\n'
            "class A:\n"
            '    """What it is."""\n'
            "    @property\n"
            "    def size(self):\n"
            '        """The size."""\n'
            "    def grow(self):\n"
            '        """The next size."""\n'
            "    def _hidden(self):\n"
            '        """The hidden one."""\n'
            "def is_one():\n"
            '    """Whether it is one."""\n'
            "async def wait():\n"
            '    """A pause."""\n'
            "    def inner():\n"
            '        """The inner one."""\n'
        )
    )
    assert [finding.line for finding in found] == [1, 3, 8, 14]


def test_findings_name_the_line():
    assert [one.line for one in in_python('x = 1\ny = """a\nb of now\n"""\n')] == [3]
    page = "# Title\n\n```\nof now\n```\n\nThe weights of\nnow, `of now`.\n"
    assert [one.line for one in in_markdown(page)] == [7]
