"""Answers in many forms, from the tables in ``answers``."""

from pathlib import Path

TABLES = Path(__file__).parent / "answers"


def _lines(name: str) -> list[str]:
    text = (TABLES / f"{name}.txt").read_text(encoding="utf-8")
    return [line.replace("⏎", "\n").replace("␣", "\u202f") for line in text.split("\n")[1:] if line]


def forms() -> list[str]:
    """Answers that must accept themselves."""
    return [
        line for line in _lines("forms") if not (line.startswith("[") and line.endswith("]") and line[1:-1].islower())
    ]


def pairs(name: str) -> list[tuple[str, str]]:
    """(oracle answer, text) of the table ``same`` or ``different``."""
    return [(line.partition("  |  ")[0], line.partition("  |  ")[2]) for line in _lines(name)]
