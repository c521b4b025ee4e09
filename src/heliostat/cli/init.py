"""``heliostat init``: from a file of problems to a commented recipe that ``heliostat train`` takes.

    source -> proposal (columns, verifier, split) -> lengths in tokens -> recipe text -> audit -> file, next command

Left out: guessing (``tasks.guessing``) and the text of the recipe (``commented_recipe``).
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.cli.json_output import print_json
from heliostat.printed import say, visible_line

if TYPE_CHECKING:
    from heliostat.cli.commented_recipe import Lengths
    from heliostat.tasks import AuditReport
    from heliostat.tasks.guessing.proposal import Proposal, Wishes

DEFAULT_RECIPE = Path("mine.toml")
_MAX_SHOWN = 60  # characters of an example
_FEW = 20  # held-out problems; with fewer, an interval is wider than most effects
_GUESSABLE = 0.2  # an answer that is right for a larger share is worth guessing


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one call found out.

    Attributes:
        audit: ``None``: there is no verifier to audit yet.
        stop: the reason for which a run would end before it trains; empty: none.
        commands: the next commands, in order.
    """

    recipe: Path
    model: str
    proposal: Proposal
    lengths: Lengths
    audit: AuditReport | None
    stop: str
    commands: tuple[str, ...]


def init(args: Namespace) -> int:
    """Run ``heliostat init``: exit code 1 if the recipe that it wrote cannot train yet, and the output says why."""
    _check_output(args.output, args.force)
    _check_source(args.source)
    from heliostat.cli.commented_recipe import recipe_text
    from heliostat.config import parse_recipe
    from heliostat.storage import publish_file
    from heliostat.tasks.guessing.proposal import propose

    folder = args.output.expanduser().parent
    wishes = _wishes(args)
    proposal = propose(args.source, wishes)
    lengths = _lengths(args.model, proposal)
    text = recipe_text(proposal, args.source, _path_in(folder, args.source), args.model, lengths)
    recipe = parse_recipe(text, folder)
    report, stop = _audited(recipe, proposal)
    stop = stop or _too_long(lengths, len(proposal.problems))
    folder.mkdir(parents=True, exist_ok=True)
    publish_file(args.output.expanduser(), text)
    outcome = Outcome(args.output, args.model, proposal, lengths, report, stop, _commands(args.output, proposal))
    if args.json:
        print_json(args, _to_json(args.source, outcome))
    else:
        _show(args.source, outcome)
    return 1 if stop else 0


def _check_output(output: Path, force: bool) -> None:
    from heliostat.config import ConfigError

    if output.suffix != ".toml":
        raise ConfigError(f"-o {output}: the name of a recipe ends in .toml")
    path = output.expanduser()
    if path.is_dir():
        raise ConfigError(f"-o {output}: this is a folder; name a file in it, like {output / 'mine.toml'}")
    if path.exists() and not force:
        raise ConfigError(f"{output} is already there; choose another name with -o, or write over it with --force")


def _check_source(source: str) -> None:
    """Refuse a file that is missing or holds plain text, and name the nearest file."""
    from heliostat.config import ConfigError, nearest

    path = Path(source).expanduser()
    if path.suffix.lower() in (".txt", ".md") and path.is_file():
        raise ConfigError(
            f"{source} is plain text, which has no answers to check; write one problem per line into a .jsonl file, "
            'like {"prompt": "2 + 3 =", "answer": "5"}'
        )
    if path.exists() or "*" in source:
        return
    here = path.parent if path.parent.is_dir() else Path()
    near = nearest(path.name, [file.name for file in here.iterdir() if not file.name.startswith(".")])
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") > 1 or (near and "/" not in source):
        raise ConfigError(f"there is no file '{source}'{near}")


def _wishes(args: Namespace) -> Wishes:
    """Return the settings that the command line decides.

    Raises:
        ConfigError: a setting is inside another one, or is said twice.
    """
    from heliostat.config import ConfigError, split_overrides
    from heliostat.config.layers import parse_value
    from heliostat.tasks.guessing.proposal import Wishes

    settings: dict[str, Any] = {}
    for dotted, text in split_overrides(args.overrides)[0].items():
        key = dotted.removeprefix("task.")
        if key in ("name", "path", "verifiers", "prompt_column", "answer_column") or "." in key:
            raise ConfigError(f"init takes no --{dotted}; the options of heliostat init --help, or the recipe, say it")
        settings[key] = parse_value(text, dotted)
    return Wishes(args.prompt_column or "", args.answer_column or "", args.verifier or "", settings)


def _path_in(folder: Path, source: str) -> str:
    """Return the source as a recipe in ``folder`` names it: relative where it lies there, absolute elsewhere."""
    path = Path(source).expanduser()
    if not path.exists():
        return source  # a data set of the hub
    target, home = path.resolve(), folder.resolve()
    if not target.is_relative_to(home):
        return str(target)
    name = os.path.relpath(target, home)
    return f"./{name}" if name.startswith(("~", "given:")) or not target.suffix else name


def _lengths(model: str, proposal: Proposal) -> Lengths:
    """Count the tokens of prompts and answers, if the model's tokenizer is on this machine."""
    from heliostat.cli.commented_recipe import TINY, Lengths, context_of
    from heliostat.models.loading.token_counts import token_counter

    solutions = [problem.solution or _last_words(problem) for problem in proposal.problems]
    counter = token_counter(model)
    if counter is None:
        return Lengths(None, 4 + max(map(len, solutions)) // 2, None)
    counts = counter.count([_text(problem) for problem in proposal.problems])
    found = Lengths(
        prompt=max(counts),
        answer=max(counter.count(solutions)),
        context=counter.context_length,
    )
    grown = (context_of(found) or counter.context_length) - counter.context_length if model == TINY else 0
    room = counter.room_for_prompt(found.budget) + grown
    long = [problem for problem, num in zip(proposal.problems, counts, strict=True) if num > room]
    return Lengths(found.prompt, found.answer, found.context, len(long), long[0].place if long else "")


def _text(problem: Any) -> str:
    """Return the text of a prompt, the messages of a chat one after the other."""
    if isinstance(problem.prompt, str):
        return str(problem.prompt)
    return "\n".join(str(message["content"]) for message in problem.prompt)


def _last_words(problem: Any) -> str:
    return "\n".join(str(turn["content"]) for turn in problem.turns) or str(problem.answer or "")


def _too_long(lengths: Lengths, num: int) -> str:
    if not lengths.num_long:
        return ""
    return (
        f"{lengths.num_long} of {num} prompts are too long for the model (first: {lengths.first_long}), and a run "
        "refuses them; remove or shorten them, or name a model with a longer context"
    )


def _audited(recipe: Any, proposal: Proposal) -> tuple[AuditReport | None, str]:
    """Audit the reward of a recipe; the second result is the reason for which a run would end before it trains."""
    if proposal.verifier is None:
        return None, "no built-in verifier fits these answers, so the reward is yours to write"
    from heliostat.tasks import audit
    from heliostat.tasks.guessing.proposal import loaded_for

    report = audit(loaded_for(proposal, recipe.task[0], recipe.run.seed), heldout=True)
    refused = len(report.refused)
    if refused > recipe.audit.max_refused * report.num_oracles:
        return report, f"{refused} of {report.num_oracles} right answers are refused, and a run would stop for that"
    return report, ""


def _commands(output: Path, proposal: Proposal) -> tuple[str, ...]:
    """Return the next commands; the run's folder is one that does not exist yet."""
    names = (output.stem if number == 1 else f"{output.stem}-{number}" for number in range(1, sys.maxsize))
    run = next(path for name in names if not (path := Path("runs", name)).exists())
    train = shlex.join(["heliostat", "train", str(output), "--run", str(run)])
    audit = shlex.join(["heliostat", "tasks", "audit", str(output)])
    return (train,) if proposal.verifier is not None else (audit, train)


def _to_json(source: str, outcome: Outcome) -> dict[str, Any]:
    proposal, columns = outcome.proposal, outcome.proposal.columns
    return {
        "source": source,
        "recipe": str(outcome.recipe),
        "model": outcome.model,
        "num_rows": proposal.num_rows,
        "columns": {name: value for name, value in asdict(columns).items() if value != ""},
        "settings": proposal.settings,
        "kind": proposal.kind,
        "verifier": proposal.verifier,
        "trials": [asdict(trial) for trial in proposal.trials],
        "notes": list(_notes(outcome)),
        "tokens": asdict(outcome.lengths),
        "audit": outcome.audit and outcome.audit.to_json(),
        "stop": outcome.stop,
        "next": list(outcome.commands),
    }


def _show(source: str, outcome: Outcome) -> None:
    """Print what was found, why, and the next command."""
    from heliostat.cli.commented_recipe import reward_template

    proposal = outcome.proposal
    say(f"{source}: {proposal.num_rows} rows")
    for label, text in _facts(outcome):
        say(f"  {label:9} {visible_line(text)}")
    for note in _notes(outcome):
        say(f"  note      {visible_line(note)}")
    say(f"\nwrote {outcome.recipe}, with a reason for each choice")
    if proposal.verifier is None:
        say(f"\n{outcome.stop}. Save this as {outcome.recipe.with_name('my_reward.py')} and make it yours:\n")
        say(reward_template(proposal))
        say("then:")
    else:
        say(f"\nnot ready to train: {outcome.stop}\n" if outcome.stop else "\nnext:")
    for command in outcome.commands if proposal.verifier is None or not outcome.stop else ():
        say(f"  {command}")


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    proposal, columns, lengths = outcome.proposal, outcome.proposal.columns, outcome.lengths
    first = proposal.task.train[0]
    facts = [("prompt", f"'{columns.prompt}' ({columns.why_prompt}), like {_quoted(first.question)}")]
    if columns.answer:
        facts.append(("answer", f"'{columns.answer}' ({columns.why_answer}), like {_quoted(first.answer)}"))
    if marker := proposal.settings.get("answer_after"):
        facts.append(("", f"the answer follows {marker!r}; the text before it is a worked solution"))
    for trial in sorted(proposal.trials, key=lambda trial: trial is not proposal.chosen):
        facts.append(("verifier" if trial is proposal.chosen else "  or", f"{trial.name}: {_evidence(trial)}"))
    if not proposal.trials:
        facts.append(("verifier", f"{(proposal.verifier or {}).get('name')}: as asked"))
    num_train, num_heldout = len(proposal.task.train), len(proposal.task.heldout)
    facts.append(("split", f"{num_train} problems to train on, {num_heldout} held out; no question is in both"))
    counted = f"; prompts of up to {lengths.prompt} tokens, answers of up to {lengths.answer}"
    facts.append(("model", f"{outcome.model}{'' if lengths.prompt is None else counted}"))
    if outcome.audit is not None:
        report = outcome.audit
        facts.append(
            ("audit", f"{report.num_oracles} right answers and {len(report.probes) - 1} tricks paid: {report.verdict}")
        )
        facts += [("", f"{finding.kind}: {finding.sentence}") for finding in report.findings]
    return facts


def _evidence(trial: Any) -> str:
    parts = [trial.evidence]
    if trial.num_right_paid and trial.forms:
        parts.append(f"right ones also {' and '.join(trial.forms)}")
    if trial.refused and trial.num_right_paid:
        parts.append(f"refuses {trial.refused}")
    if trial.paid:
        parts.append(f"pays {trial.paid}")
    return "; ".join(parts)


def _notes(outcome: Outcome) -> list[str]:
    """Return sentences on rows that are left out or too long, on columns that nothing reads, and on packages."""
    proposal, lengths = outcome.proposal, outcome.lengths
    notes = [*proposal.task.notes]
    answers = Counter(problem.answer for problem in proposal.problems)
    (commonest, count), num = answers.most_common(1)[0], len(proposal.problems)
    if len(answers) == 1 and proposal.columns.answer:
        notes.append(f"every answer is {_quoted(commonest)}, so there is nothing to learn")
    elif count > _GUESSABLE * num and proposal.columns.answer:
        notes.append(f"{_quoted(commonest)} is right for {count / num:.0%} of the problems: hold results against that")
    if len(proposal.task.heldout) < _FEW:
        notes.append(f"only {len(proposal.task.heldout)} held out, so results will be rough; more rows make them finer")
    if lengths.prompt is None:
        notes.append(f"the model '{outcome.model}' is not on this machine, so prompts are not counted in tokens")
    if proposal.missing:
        notes.append(proposal.missing)
    if proposal.others:
        notes.append(f"not shown to the model: {', '.join(proposal.others)} (task.template can show it)")
    return notes


def _quoted(text: str | None) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= _MAX_SHOWN else line[: _MAX_SHOWN - 3] + "...")
