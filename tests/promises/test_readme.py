"""The promise: what the pages show works. Python blocks run, and command lines parse with the real parser.

A block after the comment ``<!-- not run -->`` is not run (it trains for minutes, or needs a file of the reader's); the
command lines of such a block are checked all the same. The placeholder ``RECIPE`` stands for a shipped recipe, and a
command that is only mentioned (``heliostat train``) must exist.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path

import pytest

from heliostat.cli import UsageError, parse
from heliostat.cli.arguments import COMMANDS, Command
from heliostat.config import ConfigError, build_recipe, load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/**/*.md")]
    if not path.is_symlink()
)
NOT_RUN = "<!-- not run -->"
SHELLS = ("", "bash", "sh", "shell", "console", "text")
SEPARATORS = {"|", "||", "&&", ";", "&"}
REDIRECTIONS = {">", ">>", "<", "2>", "2>&1"}
PREFIXES = {"time", "nohup", "uv", "run"}
PLACEHOLDER = re.compile(r"\.\.\.|…|[\[\]<>]|--section\.key")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    runs: bool


def blocks(text: str) -> Iterator[Block]:
    """Fenced blocks, with the marker comment (blank lines aside) before them."""
    lines = text.splitlines()
    number, last = 0, ""
    while number < len(lines):
        fence = re.match(r"^(\s*)(`{3,}|~{3,})\s*([\w+-]*)", lines[number])
        if not fence:
            last = lines[number].strip() or last
            number += 1
            continue
        indent, ticks, language = fence.groups()
        start = number + 1
        number = start
        while number < len(lines) and not lines[number].strip().startswith(ticks):
            number += 1
        body = "\n".join(line.removeprefix(indent) for line in lines[start:number])
        yield Block(language, body, start + 1, runs=last != NOT_RUN)
        last = ""
        number += 1


def commands(text: str) -> Iterator[str]:
    """Every ``heliostat ...`` command line of a page: in shell blocks, indented blocks and inline code."""
    for block in blocks(text):
        if block.language in SHELLS:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from _commands_of_line(line)
    unfenced = re.sub(r"^(\s*)(`{3,}|~{3,}).*?^\s*\2", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in unfenced.splitlines():
        if line.startswith("    "):
            yield from _commands_of_line(line)
    for code in re.findall(r"`(heliostat [^`]+)`", unfenced):
        if not PLACEHOLDER.search(code):
            yield from _commands_of_line(" ".join(code.split()))


def _commands_of_line(line: str) -> Iterator[str]:
    try:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError:  # prose with an apostrophe, or output: no command
        return
    for is_operator, segment in groupby(words, lambda word: word in SEPARATORS):
        if not is_operator:
            yield from _command_of_segment(list(segment))


def _command_of_segment(words: list[str]) -> Iterator[str]:
    while words and (re.fullmatch(r"\w+=\S*", words[0]) or words[0] in PREFIXES):
        words = words[1:]
    if words and words[0].rpartition("/")[2] == "heliostat":
        yield shlex.join(["heliostat", *takewhile(lambda word: word not in REDIRECTIONS, words[1:])])


def check_command(line: str) -> None:
    """Raise where the real command would refuse the line before doing anything."""
    argv = ["demo" if word == "RECIPE" else word for word in shlex.split(line)[1:]]
    if {"-h", "--help", "--version"} & set(argv) or is_mention(argv):
        return
    args = parse(argv)
    recipe = getattr(args, "recipe", None)
    if recipe in recipe_names() or (recipe and not recipe.endswith(".toml")):
        load_recipe(recipe, args.overrides)
    else:
        build_recipe({}, args.overrides)


def is_mention(argv: list[str]) -> bool:
    """Whether a line names a command that exists, and nothing else."""
    known: dict[str, Command] = COMMANDS
    for word in argv:
        if word not in known:
            return False
        known = dict(known[word].subcommands)
    return True


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_command_lines_parse(page):
    wrong = []
    for line in commands(page.read_text(encoding="utf-8")):
        try:
            check_command(line)
        except (UsageError, ConfigError) as error:
            wrong.append(f"{line}\n    {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_blocks_run(page, tmp_path):
    """The blocks of a page run in order, in one fresh interpreter and an empty folder."""
    found = [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == "python" and block.runs]
    if not found:
        return
    script = tmp_path / "blocks.py"
    script.write_text("\n\n".join(f"# line {block.line} of {page.name}\n{block.text}" for block in found))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# -- the checks themselves ---------------------------------------------------------------------------------------------

SAMPLE = """
Run `heliostat train demo` or `heliostat report RUN [RUN ...]`; see `heliostat.train`.

```bash
$ heliostat train demo --train.num_steps 3 \\
    --run runs/x   # a comment
CUDA_VISIBLE_DEVICES=0 .venv/bin/heliostat metrics | head -3
make demo && heliostat recipes
```

    heliostat eval runs/x/model --recipe demo > out.txt

It doesn't matter that heliostat is mentioned here.

```python
import heliostat
```
<!-- not run -->

```python
heliostat.train()
```

```json
heliostat nonsense
```
"""


def test_commands_are_found_wherever_pages_put_them():
    assert list(commands(SAMPLE)) == [
        "heliostat train demo --train.num_steps 3 --run runs/x",
        "heliostat metrics",
        "heliostat recipes",
        "heliostat eval runs/x/model --recipe demo",
        "heliostat train demo",
    ]


def test_python_blocks_are_told_apart():
    assert [(block.text, block.runs) for block in blocks(SAMPLE) if block.language == "python"] == [
        ("import heliostat", True),
        ("heliostat.train()", False),
    ]


@pytest.mark.parametrize(
    "line", ["heliostat train", "heliostat tasks", "heliostat tasks show", "heliostat eval MODEL --recipe RECIPE"]
)
def test_mentions_and_placeholders_are_right(line):
    check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "heliostat trian demo",
        "heliostat train demmo",
        "heliostat train demo --train.num_step 3",
        "heliostat train demo --optimizer.lr -1",
        "heliostat train mine.toml --rollout.grop_size 3",
        "heliostat eval x --samples 0",
        "heliostat trian",
        "heliostat tasks shwo",
        "heliostat eval MODEL --recipe RECIPES",
        "heliostat report runs/x --train.num_steps 3",
    ],
)
def test_wrong_commands_are_caught(line):
    with pytest.raises((UsageError, ConfigError)):
        check_command(line)
