"""What a verifier prints reaches the terminal visible, whole, and however much of it there is."""

import os

from heliostat.tasks.sandbox.child_output import forward_output
from heliostat.tasks.sandbox.interpreter import start_child


def test_hostile_words_are_shown(capsys):
    reading, writing = os.pipe()
    thread = forward_output(reading)
    for piece in (b"\x1b[2J caf\xc3", b"\xa9 \xe2\x80\xae \xff\r\n"):
        os.write(writing, piece)
    os.close(writing)
    thread.join(30)
    assert capsys.readouterr().err == "␛[2J café \\u202e \ufffd\n"


def test_nobody_who_listens_holds_nobody_up(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stderr", None)
    thread = forward_output(reading)
    for _ in range(20):
        os.write(writing, b"x" * (1 << 16))
    os.close(writing)
    thread.join(30)
    assert not thread.is_alive()


def test_a_child_prints_through_it(capsys):
    child = start_child("tests.unit.tasks.sandbox.noisy_child")
    assert child.connection.recv() == "done"
    child.kill()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("␛[31m loud") == 2
    assert "\x1b" not in said.err
