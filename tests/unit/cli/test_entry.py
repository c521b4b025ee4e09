"""How a command ends: refusals on one line with exit code 2, bugs with their traceback, signals with theirs."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from heliostat.cli import main
from heliostat.cli.entry import is_refusal, one_line
from heliostat.config import ConfigError


def caught_from(source, module="heliostat.somewhere"):
    """The error that ``source`` raises when it runs as part of ``module``."""
    try:
        exec(compile(textwrap.dedent(source), f"<{module}>", "exec"), {"__name__": module})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def missing_module(name):
    return ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('row 3 has no prompt')",
        "raise RuntimeError('the folder is locked')",
        "raise FileNotFoundError('there is no file')",
        "from heliostat.config import ConfigError\nraise ConfigError('x')",
        "try:\n    int('x')\nexcept ValueError as error:\n    raise ValueError('x is no number') from error",
        "from heliostat.config import load_recipe\nload_recipe('nothing-like-it')",
        "open('/nowhere/to/be/found')",
        "import pathlib\npathlib.Path('/nowhere/to/be/found').read_text()",
    ],
)
def test_what_our_code_says_on_purpose_is_a_refusal(source):
    assert is_refusal(caught_from(source))


@pytest.mark.parametrize(
    "source",
    [
        "int('x')",  # a ValueError, but nobody meant to say it
        "a, b = [1]",
        "{}['x']",
        "raise KeyError('undeclared metric')",
        "raise NotImplementedError",
        "assert False, 'impossible'",
        "import json\njson.loads('{')",  # raised on purpose, but not by us
        "import torch_is_not_a_name",
    ],
)
def test_bugs_are_not(source):
    assert not is_refusal(caught_from(source))


def test_the_same_error_from_elsewhere_is_not():
    assert not is_refusal(caught_from("raise ValueError('x')", module="somebody.else"))


def test_a_full_disk_is_a_refusal():
    assert is_refusal(OSError(errno.ENOSPC, "No space left on device"))


def test_messages_fit_on_a_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(caught_from("open('/nowhere/x')")) == "/nowhere/x: no such file or directory"
    assert one_line(ValueError()) == "ValueError"


def test_a_missing_extra_is_named_with_its_cure():
    error = missing_module("math_verify.parser")
    assert is_refusal(error)
    assert one_line(error) == "this needs the package math_verify.parser: pip install 'heliostat[tasks]'"
    assert not is_refusal(missing_module("heliostat.typo"))


def test_refusals_print_one_line_and_exit_2(room, capsys):
    room("heliostat.tasks", show_task=caught_from("raise ValueError('no\\nsuch task')"))
    assert main(["tasks", "show", "x"]) == 2
    assert capsys.readouterr() == ("", "heliostat: no such task\n")


def test_debug_shows_the_traceback(room):
    room("heliostat.tasks", show_task=caught_from("raise ValueError('no such task')"))
    with pytest.raises(ValueError, match="no such task"):
        main(["tasks", "show", "x", "--debug"])
    with pytest.raises(ConfigError):
        main(["--debug", "recipes", "x"])


def test_bugs_keep_their_traceback(room):
    room("heliostat.tasks", show_task=KeyError("oops"))
    with pytest.raises(KeyError):
        main(["tasks", "show", "x"])


def test_a_keyboard_interrupt_exits_130(room, capsys):
    room("heliostat.tasks", show_task=KeyboardInterrupt())
    assert main(["tasks", "show", "x"]) == 130
    assert capsys.readouterr() == ("", "heliostat: interrupted\n")


SLEEPER = """
import signal, sys, time, types
from heliostat.cli import main

def show_task(name):
    print("ready", flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs come with it ignored
sys.modules["heliostat.tasks"] = types.ModuleType("heliostat.tasks")
sys.modules["heliostat.tasks"].show_task = show_task
sys.exit(main(["tasks", "show", "x"]))
"""


@pytest.mark.slow
def test_ctrl_c_in_a_real_process_exits_130():
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "heliostat: interrupted\n")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "heliostat", "metrics"]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_the_module_is_the_command():
    process = subprocess.run([sys.executable, "-m", "heliostat", "recipes", "demmo"], capture_output=True, text=True,
                             timeout=60, check=False)  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("heliostat: unknown recipe 'demmo' (did you mean 'demo'?)")
    assert process.stdout == ""
