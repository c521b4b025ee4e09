"""What ``heliostat diagnose`` says about each recorded run, as the table of the page.

Left out: the runs themselves (``cases``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from studies.wrecks.cases import HEALTHY, WRECKS
from studies.wrecks.records import RECORDED, unpack

from heliostat.report.diagnosis import Diagnosis, diagnose


def diagnosis(name: str) -> Diagnosis:
    """The diagnosis of a recorded run, from a folder as the command reads it."""
    with tempfile.TemporaryDirectory() as place:
        return diagnose(unpack(name, Path(place) / name))


def table() -> str:
    """One row a run: its fault, and the sentence that a user reads first."""
    lines = ["| run | first finding | as expected |", "| --- | --- | --- |"]
    right = 0
    names = [*WRECKS, *(f"healthy-{name}" for name in HEALTHY)]
    present = [name for name in names if (RECORDED / f"{name}.json").exists()]
    for name in present:
        found = diagnosis(name)
        wanted = WRECKS[name].rule if name in WRECKS else ""
        rule = found.findings[0].rule if found.findings else ""
        right += rule == wanted
        said = found.findings[0].sentence() if found.findings else "none"
        cases = WRECKS | {f"healthy-{key}": case for key, case in HEALTHY.items()}
        held_out = " (held out)" * cases[name].held_out
        lines.append(
            f"| {name}{held_out} | {said} | {'yes' if rule == wanted else f'no: {rule or None} for {wanted or None}'} |"
        )
    return "\n".join([*lines, "", f"{right} of {len(present)} as expected."])
