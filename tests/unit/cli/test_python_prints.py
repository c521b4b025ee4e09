"""What Python prints of hostile text, its tracebacks, warnings and log records, gives a terminal no commands."""

import io
import logging
import subprocess
import sys
import warnings

import pytest

from heliostat.cli.python_prints import print_visibly, python_prints_visibly

HOSTILE = "\x1b[2J\x1b]0;TITLE\x07 \u202e end"
SHOWN = "␛[2J␛]0;TITLE␇ \\u202e end"


def test_warnings_and_log_records_are_visible(capsys):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("theirs")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), python_prints_visibly():
            warnings.simplefilter("always")
            warnings.warn(HOSTILE, stacklevel=1)
            logger.warning("%s", HOSTILE)
            try:
                raise ValueError(HOSTILE)
            except ValueError:
                logger.exception("it failed: %s", HOSTILE)
    finally:
        logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert SHOWN in said
    assert stream.getvalue().count(SHOWN) == 3  # two messages and the error
    assert not {"\x1b", "\x07", "\u202e"} & set(said + stream.getvalue())


def test_a_traceback_is_visible(capsys):
    with pytest.raises(KeyError) as caught:
        raise KeyError(HOSTILE)
    error = caught.value
    error.add_note(HOSTILE)
    print_visibly(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert SHOWN in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_a_bug_ends_a_command_with_a_visible_traceback(tmp_path):
    program = (
        "from heliostat.cli import entry, parser\n"
        f"def fail(arguments): raise KeyError({HOSTILE!r}, chr(27) + '[2J')\n"
        "parser.parse = fail\n"
        "raise SystemExit(entry.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert b"\x1b" not in done.stderr
