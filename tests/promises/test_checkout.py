"""What commands leave in a checkout changes none of its checks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTED = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def littered(tmp_path_factory):
    """The linted files of the checkout beside a folder for every name that any of them imports, runs/ among them."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", root)
    for folder in ("studies", "benchmarks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=lambda at, names: [n for n in names if is_other(at, n)])
    names = {name for path in root.rglob("*.py") for name in IMPORTED.findall(path.read_text())} | {"runs"}
    for name in names - {"heliostat", "tests"}:
        (root / name).mkdir(exist_ok=True)
    return root


def is_other(folder: str, name: str) -> bool:
    return not name.endswith(".py") and not (Path(folder) / name).is_dir()


def test_folders_in_the_checkout_do_not_change_the_order_of_imports(littered):
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=littered, capture_output=True, text=True
    )
    assert (littered / "runs").is_dir()
    assert ran.returncode == 0, ran.stdout
