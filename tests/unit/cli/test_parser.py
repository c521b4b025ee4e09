"""The grammar: settings anywhere, one-line refusals with the nearest name, readable help."""

import pytest

from heliostat.cli import UsageError, build_parser, main, parse
from heliostat.cli.arguments import COMMANDS
from heliostat.config import describe_keys


def test_settings_may_stand_anywhere():
    expected = ["--train.num_steps=3", "--run.name=x"]
    for argv in (
        ["train", "demo", "--run", "r", "--train.num_steps", "3", "--run.name=x"],
        ["--train.num_steps", "3", "--run.name=x", "train", "--run", "r", "demo"],
        ["train", "--train.num_steps=3", "demo", "--run.name", "x", "--run=r"],
    ):
        args = parse(argv)
        assert (args.recipe, str(args.run_dir), args.overrides) == ("demo", "r", expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian demo", "unknown command 'trian' (did you mean 'train'?); there are: init, train, "),
        ("tasks aduit x", "unknown command 'tasks aduit' (did you mean 'audit'?); there are: list, show, audit"),
        ("train", "the following arguments are required: RECIPE (see heliostat train --help)"),
        ("train demo more", "heliostat train does not take 'more' (see heliostat train --help)"),
        ("train demo --rnu x", "heliostat train does not take '--rnu' (did you mean '--run'?)"),
        ("train demo --lr 3", "heliostat train does not take '--lr' (did you mean '--optimizer.lr'?)"),
        ("train demo --num-steps 3", "heliostat train does not take '--num-steps' (did you mean '--"),
        ("train demo --train.num_steps", "--train.num_steps needs a value: --train.num_steps VALUE"),
        ("report a --rollout.top_k 3", "heliostat report takes no recipe settings, not --rollout.top_k"),
        (
            "tasks audit x --rollout.top_k 3",
            "heliostat tasks audit takes only --task.key and --environment.key settings, not --rollout.top_k",
        ),
        ("eval --recipe demo", "the following arguments are required: MODEL (see heliostat eval --help)"),
        ("eval m --recipe demo --samples 0", "argument --samples: 0 is not a whole number above 0"),
        ("eval m --recipe demo --samples x", "argument --samples: x is not a whole number above 0"),
        ("eval m --recipe demo --temperature nan", "argument --temperature: nan is not a number above 0"),
        ("eval m --recipe demo --top-p 1.5", "argument --top-p: 1.5 is not a number above 0 and up to 1"),
        ("sample m --prompt", "argument --prompt: expected one argument"),
        ("--verbose train demo", "heliostat train does not take '--verbose'"),
    ],
)
def test_wrong_lines_are_refused_in_one_line(line, message, capsys):
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"heliostat: {message}")
    assert printed.err.count("\n") == 1


def test_settings_of_a_recipe_are_checked_before_any_room_is_entered(room, capsys):
    calls = room("heliostat.api", post_train=None)
    for argv, message in (
        (["train", "demo", "--optimizer.lr", "-1"], "optimizer.lr = -1: must be greater than 0"),
        (["train", "demo", "--rolout.lr", "1"], "unknown key rolout.lr (did you mean 'optimizer.lr'?)"),
        (["train", "dmo"], "unknown recipe 'dmo' (did you mean 'demo'?); shipped: "),
    ):
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith(f"heliostat: {message}")
    assert calls == []


def test_options_are_never_abbreviated():
    with pytest.raises(UsageError, match="does not take '--ru'"):
        parse(["train", "demo", "--ru", "x"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["tasks"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_printed_and_ends_well(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: heliostat {' '.join(argv)}".removesuffix(" --help").removesuffix(" -h"))


def test_top_help_names_every_command(capsys):
    build_parser().print_help()
    printed = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in printed


@pytest.mark.parametrize("command", ["train", "sft"])
def test_training_help_explains_every_setting(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    joined = "".join(printed.split())
    for key in describe_keys():
        assert f"--{key.name} VALUE" in printed
        assert f"{key.description}[{key.type};default:".replace(" ", "") in joined
    assert printed.index("[rollout]:") < printed.index("--rollout.group_size") < printed.index("[objective]:")


def test_other_help_says_where_settings_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert "heliostat train --help lists the settings" in capsys.readouterr().out


def test_version(capsys):
    import heliostat

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"heliostat {heliostat.__version__}\n"
