"""Forward a child process's output to standard error, with control characters made visible.

A verifier may print model text, and libraries print it in tracebacks and warnings. A terminal would obey the escape
sequences in it.

Left out: messages from children, which come over their connections (``connection``).
"""

from __future__ import annotations

import codecs
import os
import sys
import threading

from heliostat.printed import visible

_PIECE = 1 << 16


def forward_output(descriptor: int) -> threading.Thread:
    """Forward a pipe to standard error until its last writer has gone; takes ownership of ``descriptor``."""
    thread = threading.Thread(target=_forward, args=(descriptor,), name="child-output", daemon=True)
    thread.start()
    return thread


def _forward(descriptor: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = True
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while piece := pipe.read(_PIECE):  # keep reading if standard error is closed, or the child would block
            is_open = is_open and _show(decoder.decode(piece))


def _show(text: str) -> bool:
    """Write to standard error; returns ``False`` if it is closed, or a pipe without a reader."""
    try:
        sys.stderr.write(visible(text.replace("\r\n", "\n")))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return False
    return True
