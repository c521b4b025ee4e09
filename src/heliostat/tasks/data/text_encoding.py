"""Guess the encoding of a text file that is not UTF-8, for an error message.

Left out: reading such a file. A guess is good enough for a message, and not for data.
"""

from __future__ import annotations

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}
_CONVERTERS = {"gzip": "gunzip it, or end its name in .gz", "Parquet": "end its name in .parquet"}


def recognise(start: bytes, line: bytes) -> tuple[str, str]:
    """Return the encoding of a file that begins with ``start``, and how to convert it.

    Args:
        line: the line that is not UTF-8.
    """
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name, _CONVERTERS.get(name, _convert(name))
    if (start + line).count(0) * 3 > len(start + line):
        return "UTF-16", _convert("UTF-16LE" if start[1:2] == b"\0" else "UTF-16BE")
    name = "Windows-1252" if any(0x80 <= byte < 0xA0 for byte in line) else "Latin-1"
    return f"{name}, it seems", _convert(name.upper())


def _convert(name: str) -> str:
    return f"convert it: iconv -f {name} -t UTF-8 FILE > NEW" if name.isupper() or "UTF" in name else "unpack it"
