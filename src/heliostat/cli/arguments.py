"""Every command with its summary, its arguments, and the recipe settings it takes.

Left out: recipe settings (``heliostat.config``), and parsing (``parser``).
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from heliostat.cli import (
    chat,
    check,
    commands,
    completion,
    control,
    doctor,
    init,
    push,
    runs,
    scale,
    tasks,
    theory,
    traces,
    watch,
)
from heliostat.cli.suites import SUITES

_RECIPE = "name of a shipped recipe (heliostat recipes), path of a TOML file, or a run folder"
_MODEL = "run folder, model folder, hub id, or the name of a bundled model"
_OWN = " (default: that of MODEL's run)"
_TASK = "name of a task, like reasoning-gym/chain_sum or file"
_SETTINGS = "[--section.key VALUE ...]"
_TASK_SETTINGS = "[--task.key VALUE ...]"

ALL_SECTIONS = "*"


def _none(parser: ArgumentParser) -> None:
    """Add no arguments."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand.

    Attributes:
        summary: its purpose, in a phrase.
        run: called with the parsed arguments; returns the exit code. ``None``: it only has subcommands.
        add_arguments: declares its own arguments.
        usage: its arguments in one line, for commands with settings, which argparse does not know.
        sections: recipe sections whose keys it accepts as ``--section.key value``.
        explains_settings: whether its help lists every recipe setting.
        subcommands: commands below this one.
    """

    summary: str
    run: Callable[[argparse.Namespace], int] | None
    add_arguments: Callable[[ArgumentParser], None] = _none
    usage: str = ""
    sections: tuple[str, ...] = ()
    explains_settings: bool = False
    subcommands: tuple[tuple[str, Command], ...] = ()


def _json(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def _init(parser: ArgumentParser) -> None:
    help_ = "data file (.jsonl, .json, .csv, .tsv, .parquet), folder of such files, or Hugging Face data set"
    parser.add_argument("source", metavar="SOURCE", help=f"problems, or chats with messages: {help_}")
    help_ = f"recipe to write (default: {init.DEFAULT_RECIPE})"
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=init.DEFAULT_RECIPE, help=help_)
    parser.add_argument("--model", metavar="MODEL", default="tiny", help=f"{_MODEL} (default: tiny)")
    parser.add_argument("--prompt-column", metavar="COLUMN", help="column of the prompts (default: guessed)")
    parser.add_argument("--answer-column", metavar="COLUMN", help="column of the right answers (default: guessed)")
    help_ = "verifier, or my_module:my_function (default: the one that judges the answers best)"
    parser.add_argument("--verifier", metavar="NAME", help=help_)
    parser.add_argument("--force", action="store_true", help="write over an existing recipe")
    _json(parser, "the findings")


def _train(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=_RECIPE)
    parser.add_argument(
        "--run", dest="run_dir", metavar="DIR", type=Path, help="run folder; an unfinished run in it resumes"
    )


def _post_train(parser: ArgumentParser) -> None:
    _train(parser)
    parser.add_argument(
        "--no-audit", action="store_true", help="skip the audit of the reward, or ignore its earlier findings"
    )
    parser.add_argument(
        "--profile", action="store_true", help="after a few steps, print their time and memory by phase"
    )
    parser.add_argument("--watch", action="store_true", help="serve the report on this machine while the run goes on")


def _sft(parser: ArgumentParser) -> None:
    _train(parser)
    parser.add_argument(
        "--data", metavar="FILE", type=Path, help="file of prompt/completion rows (default: the recipe's tasks)"
    )


def _eval(parser: ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{_MODEL}; give two to compare them")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help=f"recipe with the tasks (default: that of a MODEL's run): {_RECIPE}"
    )
    parser.add_argument("--samples", metavar="N", type=_count, help="completions per problem (default: the recipe's)")
    parser.add_argument("--problems", metavar="N", type=_count, help="held-out problems (default: all)")
    parser.add_argument("--greedy", action="store_true", help="also decode every problem greedily")
    parser.add_argument(
        "--temperature", metavar="T", type=_positive, help="sampling temperature (default: the recipe's)"
    )
    parser.add_argument("--top-p", metavar="P", type=_share, help="nucleus sampling: probability mass to sample from")
    help_ = "print the results as JSON; with FILE, print a table and write them there"
    parser.add_argument("--json", metavar="FILE", nargs="?", const=True, type=Path, help=help_)
    group = parser.add_argument_group("measure one model with lm-evaluation-harness instead (extra: lm-eval)")
    help_ = "the word lm-eval, and names of the harness's tasks"
    group.add_argument("--with", dest="harness", metavar=("lm-eval", "TASK"), nargs="+", help=help_)
    help_ = "folder with YAML files of further tasks"
    group.add_argument("--include-path", metavar="FOLDER", type=Path, help=help_)
    help_ = "render prompts by the model's chat template"
    group.add_argument("--chat-template", action="store_true", help=help_)


def _sample(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--recipe", metavar="RECIPE", help=f"recipe with the problems, chat settings and token budget{_OWN}"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="complete this text instead of a problem")
    parser.add_argument("-n", "--num", metavar="N", type=_count, default=4, help="number of completions (default: 4)")
    parser.add_argument(
        "--temperature", metavar="T", type=_positive, help="sampling temperature (default: the recipe's)"
    )
    _json(parser, "the completions, or the counts of the bank")
    group = parser.add_argument_group("fill a trace bank instead of printing")
    group.add_argument("--bank", metavar="FILE", type=Path, help="bank for verified solutions of the training problems")
    help_ = "solutions to find for each problem (default: 1)"
    group.add_argument("--successes", metavar="K", type=_count, default=1, help=help_)
    help_ = "largest number of attempts at each problem (default: 256)"
    group.add_argument("--attempts", metavar="N", type=_count, default=256, help=help_)
    group.add_argument("--problems", metavar="N", type=_count, help="use the first N training problems (default: all)")


def _chat(parser: ArgumentParser) -> None:
    help_ = f"{_MODEL}; of a run, its first model answers too; give two models to compare those"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=help_)
    parser.add_argument("--alone", action="store_true", help="without the model that the run began with")
    parser.add_argument("--recipe", metavar="RECIPE", help=f"recipe with chat settings and token budget{_OWN}")
    parser.add_argument("--tokens", metavar="N", type=_count, help="longest answer in tokens (default: the recipe's)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--greedy", action="store_true", help="the likeliest token every time")
    group.add_argument(
        "--temperature", metavar="T", type=_positive, help="sampling temperature (default: the recipe's)"
    )


def _control(parser: ArgumentParser) -> None:
    algos = ("smac", "a2c", "ppo", "trpo")
    parser.add_argument("env", metavar="ENV", help="gymnasium environment, like CartPole-v1")
    parser.add_argument(
        "--algo", nargs="+", choices=algos, default=["smac"], help="algorithms, shown in one chart (default: smac)"
    )
    help_ = "environment steps per seed (default: 100000)"
    parser.add_argument("--steps", metavar="N", type=_count, default=100_000, help=help_)
    parser.add_argument("--seeds", metavar="K", type=_count, default=1, help="run seeds 0 to K - 1 (default: 1)")
    parser.add_argument("--run", dest="run_dir", metavar="DIR", type=Path, help="folder of the new run")
    parser.add_argument("--processes", metavar="P", type=_count, help="parallel processes (default: one per CPU)")
    help_ = "constructor arguments of the algorithms, or of SMAC's direction: learning_rate=0.3 num_scores=16"
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", nargs="+", default=[], help=help_)


def _scale(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, its config.json, a hub id, or a name like qwen2.5-7b"
    )
    parser.add_argument("--recipe", metavar="RECIPE", help=f"recipe (default: default settings): {_RECIPE}")
    parser.add_argument("--gpus", metavar="N", type=_count, default=1, help="GPUs that train (default: 1)")
    parser.add_argument("--samplers", metavar="N", type=_count, default=0, help="GPUs that only sample (default: none)")
    parser.add_argument("--ways", metavar="N", type=_count, default=1, help="GPUs of one sampler (default: 1)")
    help_ = "length of a prompt in tokens (default: 256)"
    parser.add_argument("--prompt-tokens", metavar="N", type=_count, default=256, help=help_)
    help_ = "mean length of a completion in tokens (default: half of rollout.max_new_tokens)"
    parser.add_argument("--mean-tokens", metavar="N", type=_positive, help=help_)
    help_ = "dollars for an hour of one GPU; adds the cost (default: no cost)"
    parser.add_argument("--price", metavar="DOLLARS", type=_positive, help=help_)
    _json(parser, "the estimate")


def _push(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; created if it is missing")
    parser.add_argument("--adapter", action="store_true", help="upload the adapter instead of the merged model")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="print files, sizes and card, and upload nothing")
    parser.add_argument("--yes", action="store_true", help="upload without a question")


def _report(parser: ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder; several are shown on one page")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="page to write (default: in the run folder)")
    parser.add_argument(
        "--by", choices=("step", "flops"), default="step", help="horizontal axis of the charts (default: step)"
    )


def _check(parser: ArgumentParser) -> None:
    help_ = "my_module:MyClass, a name that an installed package declares, or a shipped name"
    parser.add_argument("name", metavar="NAME", help=help_)
    help_ = "kind of the part (default: seen from the part itself)"
    parser.add_argument("--kind", choices=tuple(SUITES), help=help_)
    _json(parser, "the result")


def _runs(parser: ArgumentParser) -> None:
    help_ = "run folder, or folder of run folders (default: runs)"
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help=help_)
    _json(parser, "the list")


def _watch(parser: ArgumentParser) -> None:
    help_ = "run folder, which need not exist yet (default: the newest in runs)"
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=help_)
    parser.add_argument("--port", metavar="P", type=_port, help="port (default: 8475, or a free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def _diagnose(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", type=Path, help="run folder, or a JSONL file of metrics or transcripts")
    _json(parser, "the findings")


def _doctor(parser: ArgumentParser) -> None:
    _json(parser, "the findings")


def _task(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK", help=f"{_TASK}; or a recipe or run folder, to show its tasks")


def _audit(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK", help=f"{_TASK}; or a recipe or run folder, to audit all its tasks")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the audited problems (default: 0)")
    _json(parser, "the findings")


def _plots(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path("theory"), help="output folder")
    parser.add_argument(
        "--measured",
        metavar="PATH",
        type=Path,
        help="run folder or JSONL file whose steps are drawn over the exact ones",
    )


def _bank(parser: ArgumentParser) -> None:
    parser.add_argument("bank", metavar="BANK", type=Path, help="trace bank: an SQLite file")


def _judged_bank(parser: ArgumentParser) -> None:
    _bank(parser)
    parser.add_argument(
        "--recipe", metavar="RECIPE", help=f"recipe with the problems, model and verifiers to grade with: {_RECIPE}"
    )


def _import(parser: ArgumentParser) -> None:
    _judged_bank(parser)
    help_ = "JSONL or Parquet file, folder or fsspec URL of such files, or Hugging Face data set"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=help_)
    _json(parser, "the counts")


def _export(parser: ArgumentParser) -> None:
    _bank(parser)
    parser.add_argument("target", metavar="TARGET", help="folder, or fsspec URL like s3://bucket/traces")
    _json(parser, "the written files")


def _show(parser: ArgumentParser) -> None:
    _bank(parser)
    parser.add_argument("--problem", metavar="ID", help="only traces of this problem (default: all)")
    parser.add_argument("--num", metavar="N", type=_count, default=3, help="traces to print (default: 3)")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help=f"recipe whose model's tokenizer shows every turn as text: {_RECIPE}"
    )
    _json(parser, "the traces")


def _stats(parser: ArgumentParser) -> None:
    _bank(parser)
    _json(parser, "the statistics")


def _recipes(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="RECIPE", nargs="?", help="recipe to print (default: list all)")
    _json(parser, "the list, or the recipe's tables,")


def _metrics(parser: ArgumentParser) -> None:
    _json(parser, "the glossary")


def _list(parser: ArgumentParser) -> None:
    _json(parser, "the list")


def _verify(parser: ArgumentParser) -> None:
    _judged_bank(parser)
    _json(parser, "the counts")


def _completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=completion.SHELLS, help="shell that reads the script")


def _count(text: str) -> int:
    value = int(text) if text.lstrip("+-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is not a port: a whole number from 0 (a free one) to 65535")
    return value


def _positive(text: str) -> float:
    return _number_in(text, float("inf"))


def _share(text: str) -> float:
    return _number_in(text, 1.0)


def _number_in(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number above 0" + (f" and up to {most:g}" if most == 1 else "")
        )
    return value


_TASK_COMMANDS = (
    ("list", Command("list every task that a recipe can name", tasks.list_tasks, _list)),
    ("show", Command("show a task's settings and some of its problems", tasks.show_task, _task)),
    (
        "audit",
        Command(
            "test verifiers or an environment with right answers and junk; exit code 1 if either is graded wrongly",
            tasks.audit_task,
            _audit,
            usage=f"TASK [--seed N] [--json] {_TASK_SETTINGS}",
            sections=("task", "environment"),
        ),
    ),
)

_THEORY_COMMANDS = (("plot", Command("draw the theory's figures as SVG files", theory.plot_theory, _plots)),)

_TRACE_COMMANDS = (
    (
        "import",
        Command(
            "import traces from files into a bank; with a recipe, grade each of them again",
            traces.import_traces,
            _import,
            usage=f"BANK SOURCE [SOURCE ...] [--json] [--recipe RECIPE] {_SETTINGS}",
            sections=(ALL_SECTIONS,),
        ),
    ),
    ("export", Command("write a bank as Parquet files, partitioned by run and step", traces.export_traces, _export)),
    (
        "show",
        Command(
            "print traces of a bank turn by turn",
            traces.show_traces,
            _show,
            usage=f"BANK [--problem ID] [--num N] [--json] [--recipe RECIPE] {_SETTINGS}",
            sections=(ALL_SECTIONS,),
        ),
    ),
    ("stats", Command("count the traces of a bank, and the attempts per success", traces.trace_stats, _stats)),
    (
        "verify",
        Command(
            "check every row of a bank; with a recipe, also check its rewards",
            traces.verify_traces,
            _verify,
            usage=f"BANK [--json] [--recipe RECIPE] {_SETTINGS}",
            sections=(ALL_SECTIONS,),
        ),
    ),
)

COMMANDS: dict[str, Command] = {
    "init": Command(
        "write a commented recipe for your own problems: guess the columns and the verifier, split, audit",
        init.init,
        _init,
        usage=f"SOURCE [-o FILE] [--model MODEL] [--prompt-column COLUMN] [--answer-column COLUMN]\n"
        f"                      [--verifier NAME] [--force] [--json] {_TASK_SETTINGS}",
        sections=("task",),
    ),
    "train": Command(
        "post-train a model with a recipe; the same command resumes an unfinished run",
        commands.train,
        _post_train,
        usage=f"RECIPE [--run DIR] [--watch] [--profile] {_SETTINGS}",
        sections=(ALL_SECTIONS,),
        explains_settings=True,
    ),
    "sft": Command(
        "train a model on worked solutions, without sampling",
        commands.sft,
        _sft,
        usage=f"RECIPE [--data FILE] [--run DIR] {_SETTINGS}",
        sections=(ALL_SECTIONS,),
        explains_settings=True,
    ),
    "eval": Command(
        "measure one model on held-out problems, or compare two",
        commands.evaluate,
        _eval,
        usage="MODEL [MODEL] [--recipe RECIPE] [--samples N] [--problems N] [--greedy]\n"
        f"                      [--temperature T] [--top-p P] [--json [FILE]] {_SETTINGS}\n"
        "       heliostat eval MODEL --with lm-eval TASK [TASK ...] [--include-path FOLDER] [--problems N]\n"
        "                      [--chat-template] [--json [FILE]]",
        sections=(ALL_SECTIONS,),
    ),
    "sample": Command(
        "print a few completions, or fill a trace bank by rejection sampling",
        commands.sample,
        _sample,
        usage=f"MODEL [--recipe RECIPE] [--prompt TEXT] [-n N] [--temperature T] [--json] {_SETTINGS}\n"
        f"       heliostat sample MODEL [--recipe RECIPE] --bank FILE [--successes K] [--attempts N] {_SETTINGS}",
        sections=(ALL_SECTIONS,),
    ),
    "chat": Command(
        "talk to a model, or to the first and the last model of a run side by side",
        chat.chat,
        _chat,
        usage=f"MODEL [MODEL] [--alone] [--tokens N] [--greedy | --temperature T] [--recipe RECIPE] {_SETTINGS}",
        sections=(ALL_SECTIONS,),
    ),
    "runs": Command("list runs with their status, result and size", runs.runs, _runs),
    "watch": Command("serve the report of a run on this machine while it goes on", watch.watch, _watch),
    "report": Command("write an HTML report of one or more runs", commands.report, _report),
    "push": Command("upload a finished run's model with its card to the Hugging Face hub", push.push, _push),
    "control": Command("train on a gymnasium environment: SMAC, A2C, PPO, TRPO", control.control, _control),
    "traces": Command("import, export, show, count and verify stored traces", None, subcommands=_TRACE_COMMANDS),
    "diagnose": Command("explain from its folder why a run went wrong", commands.diagnose, _diagnose),
    "doctor": Command("say what this installation and machine lack, and the way out", doctor.doctor, _doctor),
    "tasks": Command("list, show and audit tasks", None, subcommands=_TASK_COMMANDS),
    "scale": Command(
        "estimate memory, traffic and seconds of a step on H100 nodes",
        scale.scale,
        _scale,
        usage=f"MODEL [--gpus N] [--samplers N] [--ways N] [--price DOLLARS] [--json] [--recipe RECIPE] {_SETTINGS}",
        sections=(ALL_SECTIONS,),
    ),
    "check": Command(
        "check that a part of a run, of your own too, keeps the promises that training relies on",
        check.check,
        _check,
        usage="NAME [--kind KIND] [--json] [--objective.key VALUE ...]",
        sections=tuple(suite.section for suite in SUITES.values()),
    ),
    "theory": Command("draw the exact theory of mirror-descent steps", None, subcommands=_THEORY_COMMANDS),
    "recipes": Command("list the shipped recipes, or print one", commands.recipes, _recipes),
    "metrics": Command("explain every metric in metrics.jsonl", commands.metrics, _metrics),
    "completion": Command(
        "print a script that completes this command line in a shell", completion.completion, _completion
    ),
}
