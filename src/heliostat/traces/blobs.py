"""Pack ids and floats to compact bytes and back, and compute digests that identify rows.

Ids take two bytes each if all of them fit, else four; the first byte says which. Log-probabilities are float32. Turns
are JSON, one list of values each.

Left out: the tables (``schema``).
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from heliostat.types import FloatArray, Turn

_WIDTHS = {2: "H", 4: "I"}
_SWAPPED = sys.byteorder == "big"  # files are little-endian everywhere
DIGEST_SIZE = 12


def pack_ids(ids: Sequence[int]) -> bytes:
    """Pack ids to bytes.

    Raises:
        ValueError: an id needs more than 32 bits.
    """
    width = 2 if max(ids, default=0) < 2**16 else 4
    try:
        numbers = array(_WIDTHS[width], ids)
    except OverflowError:
        raise ValueError(f"token ids must lie between 0 and 2**32 - 1, got {min(ids)} and {max(ids)}") from None
    if _SWAPPED:
        numbers.byteswap()
    return bytes([width]) + numbers.tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """Unpack the result of ``pack_ids``.

    Raises:
        ValueError: these bytes are not packed ids.
    """
    if not blob or blob[0] not in _WIDTHS or (len(blob) - 1) % blob[0]:
        raise ValueError("damaged token ids")
    numbers = array(_WIDTHS[blob[0]])
    numbers.frombytes(blob[1:])
    if _SWAPPED:
        numbers.byteswap()
    return tuple(numbers)


def pack_floats(values: FloatArray | tuple[()]) -> bytes:
    """Pack float32 values to bytes."""
    return np.asarray(values, dtype="<f4").tobytes()


def unpack_floats(blob: bytes) -> FloatArray:
    """Unpack the result of ``pack_floats``.

    Raises:
        ValueError: the bytes are no whole number of values.
    """
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def pack_turns(turns: Sequence[Turn]) -> str:
    """Pack turns to a text; no turns are the empty text."""
    return json.dumps([astuple(turn) for turn in turns], separators=(",", ":")) if turns else ""


def unpack_turns(text: str) -> tuple[Turn, ...]:
    """Unpack the result of ``pack_turns``.

    Raises:
        ValueError: the text is no list of turns.
    """
    try:
        return tuple(Turn(*values) for values in json.loads(text)) if text else ()
    except (ValueError, TypeError) as error:
        raise ValueError("damaged turns") from error


def digest(*parts: object) -> bytes:
    """Return twelve bytes that identify ``parts``; lengths are included, so that parts cannot run together."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        hasher.update(len(content).to_bytes(4, "little"))
        hasher.update(content)
    return hasher.digest()
