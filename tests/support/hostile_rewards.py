"""Reward functions that do to their worker what they can; tests name them as ``tests.support.hostile_rewards:act``."""

import gc
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

SLEEP = "import time; time.sleep(600)  # "


def act(prompts, completions, **columns):
    name, _, marker = completions[0].partition(" ")
    return ACTS[name](marker) if name in ACTS else [1.0]


def connection():
    return next(found for found in gc.get_objects() if isinstance(found, Connection))


def progress():
    return next(found for found in gc.get_objects() if isinstance(found, mmap.mmap))


def daemon(marker, **options):
    """A program in a session of its own, whose parent is gone."""
    code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP + marker!r}], start_new_session=True)"
    )
    subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True, **options)
    return [1.0]


def child_in_a_session(marker):
    subprocess.Popen([sys.executable, "-c", SLEEP + marker], start_new_session=True)
    return [1.0]


def daemon_without_environment(marker):
    return daemon(marker, env={})


def daemon_then_hang(marker):
    daemon(marker)
    time.sleep(600)


def daemon_then_die(marker):
    daemon(marker)
    os._exit(3)


def daemon_and_no_supervisor(marker):
    daemon(marker)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def stop_the_supervisor(marker):
    os.kill(os.getppid(), signal.SIGSTOP)
    return daemon(marker)


def partial_header(marker):
    os.write(connection().fileno(), b"\0")
    time.sleep(600)


def partial_message(marker):
    os.write(connection().fileno(), struct.pack("!i", 100) + b"[")
    time.sleep(600)


def endless_message(marker):
    os.write(connection().fileno(), struct.pack("!iQ", -1, 1 << 62))
    time.sleep(600)


def no_json(marker):
    connection().send_bytes(b"\xff\xfe")
    time.sleep(600)


def deep_json(marker):
    connection().send_bytes(b"[" * 1_000_000)
    time.sleep(600)


def foreign_verdict(marker):
    connection().send_bytes(b'[[1000000, {"act": 1.0}, ""]]')
    time.sleep(600)


def infinite_verdict(marker):
    connection().send_bytes(b'[[0, {"act": Infinity}, ""], [1, {"act": 1e999}, ""]]')
    time.sleep(600)


def lying_clock(marker):
    struct.pack_into("<qd", progress(), 0, 1, 1e300)
    time.sleep(600)


def dancing_clock(marker):
    def dance():
        while True:
            struct.pack_into("<qd", progress(), 0, 1, time.monotonic())
            time.sleep(0.01)

    threading.Thread(target=dance, daemon=True).start()
    time.sleep(600)


def false_number(marker):
    struct.pack_into("<qd", progress(), 0, 10**12, time.monotonic())
    time.sleep(600)


def stops(marker):
    os.kill(os.getpid(), signal.SIGSTOP)


ESCAPES = [
    child_in_a_session,
    daemon,
    daemon_without_environment,
    daemon_then_hang,
    daemon_then_die,
    daemon_and_no_supervisor,
]
LIES = [
    partial_header,
    partial_message,
    endless_message,
    no_json,
    deep_json,
    foreign_verdict,
    infinite_verdict,
    lying_clock,
    dancing_clock,
    false_number,
    stops,
]
ACTS = {function.__name__: function for function in [*ESCAPES, *LIES, stop_the_supervisor]}
