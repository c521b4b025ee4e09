"""``heliostat chat`` in a pipe and on a terminal."""

import io

import pytest

from heliostat.cli.entry import main
from heliostat.config import build_recipe, dump_recipe
from heliostat.models import load_model
from heliostat.rollout import SamplingSettings
from heliostat.train.evaluation.chat import open_chat

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
RECIPE = build_recipe({"model.settings": SHAPE, "model.chat": True, "rollout.max_new_tokens": 5, "run.num_threads": 1})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.toml").write_text(dump_recipe(RECIPE))
    loaded = load_model(RECIPE.model, seed=5)
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder / "model")
    return folder


def say(monkeypatch, capsys, lines, *args):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code = main(["chat", *map(str, args)])
    return code, capsys.readouterr()


@pytest.mark.slow
def test_each_model_reads_its_own_side_of_the_conversation(run):
    chat = open_chat([str(run)], RECIPE, SamplingSettings(0.0))
    first, second = chat.answers("a"), chat.answers("b")
    assert [speaker.name for speaker in chat.speakers] == ["before (tiny)", f"after ({run})"]
    for speaker, *said in zip(chat.speakers, first, second, strict=True):
        assert [message["content"] for message in speaker.messages] == ["a", said[0], "b", said[1]]
    chat.forget()
    assert chat.answers("a") == first, "greedy answers depend on the conversation alone"


@pytest.mark.slow
def test_a_pipe_gets_every_answer_with_its_model(monkeypatch, capsys, run):
    code, printed = say(monkeypatch, capsys, "one\n\n/new\ntwo\n/quit\nthree\n", run)
    assert code == 0
    lines = printed.out.splitlines()
    assert [line for line in lines if line.startswith("> ")] == ["> one", "> /new", "> two"]
    assert [line.partition(":")[0] for line in lines if line.startswith(("before:", "after:"))] == [
        "before",
        "after",
    ] * 2
    code, printed = say(monkeypatch, capsys, "one\n", run, "--alone", "--greedy")
    assert code == 0
    assert "before" not in printed.out


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(monkeypatch, capsys, run):
    code, printed = say(monkeypatch, capsys, "word " * 2000 + "\n/new\nhi\n", run, "--alone")
    assert code == 0
    assert "context of model" in printed.out
    assert "/new begins anew\n> /new\n> hi" in printed.out


def test_three_models_are_refused(capsys):
    assert main(["chat", "tiny", "tiny", "tiny"]) == 2
    assert "not 3" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "stand_side_by_side"), [(80, True), (40, False)])
def test_on_a_terminal_answers_stand_side_by_side_where_they_fit(monkeypatch, capsys, run, width, stand_side_by_side):
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", str(width)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)  # by which rich takes any output for a terminal
    code, printed = say(monkeypatch, capsys, "hello\n", run)
    assert code == 0
    lines = printed.out[printed.out.index("> hello") :].splitlines()
    assert any("before (tiny)" in line and "after" in line for line in lines) is stand_side_by_side
