"""Run work in a forked child."""

import faulthandler
import os
import traceback
from collections.abc import Callable

import torch

HANGS_AFTER = 200
"""Seconds after which a forked child says where it hangs and ends: less than a test may take."""


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process and return its id; the child never comes back here."""
    child = os.fork()
    if child == 0:
        code = 1
        torch.set_num_threads(1)  # threads do not survive a fork, and OpenMP would wait for its own for ever
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child
