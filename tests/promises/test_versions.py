"""The lowest transformers that ``pyproject.toml`` states does what the newest does."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

FAMILIES = Path(__file__).parents[2] / "benchmarks" / "families"


@pytest.fixture(scope="module")
def versions():
    spec = importlib.util.spec_from_file_location("families_versions", FAMILIES / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lowest_folder(versions, tmp_path):
    try:
        versions.install(f"=={versions.lowest()}", tmp_path / "packages")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"transformers {versions.lowest()} cannot be installed here: {error}")
    return tmp_path / "packages"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_family_works_with_the_lowest_version(versions, lowest_folder):
    row = versions.row_of("llama", lowest_folder)
    assert row["transformers"] == versions.lowest()
    assert not versions.bad_cells(row)


def test_the_lowest_version_of_the_range_was_tried_with_every_family(versions):
    found = versions.results()
    assert set(versions.FAMILIES) <= set(found[versions.lowest()])
    for by_family in found.values():
        assert not any(map(versions.bad_cells, by_family.values()))
