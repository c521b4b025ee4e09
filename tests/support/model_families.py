"""The families that the sweep builds (``benchmarks/families/small.py``), for tests."""

import importlib.util
from pathlib import Path

from heliostat.models import LoadedModel
from tests.support.checkpoints import load_float32

PATH = Path(__file__).parents[2] / "benchmarks" / "families" / "small.py"
spec = importlib.util.spec_from_file_location("families_small", PATH)
assert spec is not None
assert spec.loader is not None
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)


def load_small(family: str, folder: Path) -> LoadedModel:
    """A small random model of the family, from a folder of its own."""
    return load_float32(small.write_small(family, folder / family))
