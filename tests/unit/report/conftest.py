"""Run folders and a browser, each made once where the tests only read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.report.browser import Browser, find_chromium
from tests.unit.report.synthetic import Shape, kill, make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that learned. Read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "demo", Shape())


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that was killed in the middle of writing."""
    return kill(make_run(tmp_path / "killed", Shape(name="killed", seed=3)))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One headless Chromium for the whole session."""
    binary = find_chromium()
    if binary is None:
        pytest.skip("no chromium or google-chrome on PATH: the page was not tested in a browser")
    running = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()
