"""The promise: the page's example of each package runs, where the package is installed.

The blocks that are marked as not run are run here, section by section, and skip without the package. TRL's needs none,
and runs with the blocks of all other pages.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.served import served

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "environments.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(section):
    """Return the Python blocks under one heading of the page."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [text for text in sections if text.startswith(f"{section}\n")]
    return BLOCK.findall(text)


def run(block, folder):
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("section", "package"), [("gymnasium", "gymnasium"), ("skyrl-gym", "skyrl_gym")])
def test_an_example_of_assertions(section, package, tmp_path):
    pytest.importorskip(package, reason=f"needs the package {package}")
    (block,) = blocks(section)
    assert "assert" in block
    run(block, tmp_path)


@pytest.mark.slow
def test_the_example_of_textarena(tmp_path):
    pytest.importorskip("textarena", reason="needs the package textarena")
    (block,) = blocks("textarena")
    said = run(block, tmp_path)
    assert "GuessTheNumber" in said or "guess" in said.lower()
    assert 0 <= float(said.splitlines()[-1].split()[0]) <= 1


@pytest.mark.slow
def test_the_example_of_openenv(tmp_path):
    pytest.importorskip("openenv", reason="needs the package openenv")
    author, user = blocks("OpenEnv")
    names = {"__name__": "my_server"}
    exec(author, names)
    with served(names["app"]) as url:
        assert "http://127.0.0.1:8000" in user
        run(user.replace("http://127.0.0.1:8000", url), tmp_path)
