"""prime-rl's ``LossInputs`` and ``LossOutputs``, with the fields that ``tests/reference/prime_rl.json`` recorded.

Its package is on no index, so this is what its adapter runs on in tests. Left out: everything else of prime-rl.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

RECORD = json.loads((Path(__file__).parents[1] / "reference" / "prime_rl.json").read_text(encoding="utf-8"))
DEFAULTS = {"field(default=None)": None, "None": None}


def _class(name):
    return dataclasses.make_dataclass(
        name,
        [
            (field["name"], object)
            if field["default"] is None
            else (field["name"], object, dataclasses.field(default=DEFAULTS[field["default"]]))
            for field in RECORD[name]
        ],
    )


LossInputs = _class("LossInputs")
LossOutputs = _class("LossOutputs")


def install(monkeypatch):
    """Let ``prime_rl.trainer.rl.loss`` be imported for the length of a test."""
    name = "prime_rl.trainer.rl.loss"
    for depth in range(1, 5):
        part = ".".join(name.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].LossInputs = LossInputs
    sys.modules[name].LossOutputs = LossOutputs
