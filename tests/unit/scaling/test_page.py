"""The pages' tables are what the formulas say today."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_every_table_of_the_pages_is_computed():
    path = ROOT / "benchmarks" / "scaling" / "page.py"
    spec = importlib.util.spec_from_file_location("scaling_page", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    for text in texts:
        assert page.filled(text) == text, "run python benchmarks/scaling/page.py --write"
    assert [name for name in page.TABLES if "".join(texts).count(f"<!-- {name} -->") != 1] == []
