"""What a child process prints, made visible on its way to this process's standard error.

A verifier may print what a model wrote, and libraries print it for them in tracebacks and warnings; a terminal would
obey the escape sequences in it.

Left out: what children answer, which comes over their connections (``connection``).
"""

from __future__ import annotations

import codecs
import os
import sys
import threading

from heliostat.printed import visible

_PIECE = 1 << 16


def forward_output(descriptor: int) -> threading.Thread:
    """Show what comes from a pipe until its last writer has gone; takes ``descriptor`` over."""
    thread = threading.Thread(target=_forward, args=(descriptor,), name="child-output", daemon=True)
    thread.start()
    return thread


def _forward(descriptor: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = True
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while piece := pipe.read(_PIECE):  # read on where nobody can be told, or the child would stand still
            is_open = is_open and _show(decoder.decode(piece))


def _show(text: str) -> bool:
    """Whether standard error took it; it may be closed, or a pipe whose reader has left."""
    try:
        sys.stderr.write(visible(text.replace("\r\n", "\n")))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return False
    return True
