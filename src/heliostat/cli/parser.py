"""Parsing of a command line: recipe settings are taken out first, wherever they stand; argparse reads the rest.

Left out: the commands (``arguments``), and the values of settings (``heliostat.config``).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from heliostat import __version__
from heliostat.cli.arguments import ALL_SECTIONS, COMMANDS, Command

_WORDS = re.compile(r"[a-z0-9-]+(\|[a-z0-9-]+)+")  # the type of a setting that lists its values
_SETTINGS_ELSEWHERE = "heliostat train --help lists the settings that --section.key VALUE can change."


class UsageError(ValueError):
    """The command line does not parse; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process, and accepts no abbreviated options.

    Args:
        explains_settings: the help also lists the recipe settings; the list is built when help is printed.
        sections: recipe sections whose settings the command takes.
    """

    def __init__(
        self, *args: Any, explains_settings: bool = False, sections: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **options})
        self._must_list_settings = explains_settings
        self._sections = sections
        # read from the raw arguments by ``entry.main``, so that it works for errors of this very parser too
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Return the help text, with settings grouped by section."""
        if self._must_list_settings:
            self._must_list_settings = False
            self.list_settings()
        return super().format_help()

    def list_settings(self) -> None:
        """Add the settings of the command's recipe sections to its options, which ``parse`` does without."""
        if not self._sections:
            return
        from heliostat.config import describe_keys, describe_sections

        groups = {name: self.add_argument_group(f"[{name}]", summary) for name, summary in describe_sections().items()}
        for key in describe_keys():
            section = key.name.partition(".")[0]
            if ALL_SECTIONS in self._sections or section in self._sections:
                text = f"{key.description} [{key.type}; default: {_default_text(key.default)}]".replace("%", "%%")
                choices = key.type.split("|") if _WORDS.fullmatch(key.type) else None
                groups[section].add_argument(
                    f"--{key.name}", metavar="VALUE", choices=choices, default=argparse.SUPPRESS, help=text
                )


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=34, **options)


def build_parser() -> Parser:
    """Build the parser of everything but recipe settings, which ``parse`` takes out first."""
    parser = Parser("heliostat", description="Post-train language models by policy mirror descent.")
    parser.add_argument("--version", action="version", version=f"heliostat {__version__}")
    parser.set_defaults(spoken_by=parser, definition=None)
    _add_commands(parser, "", COMMANDS)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Returns:
        The arguments; ``definition`` is the ``Command``, and ``overrides`` holds the recipe settings as
        ``--section.key=value``.

    Raises:
        UsageError: unknown command or option, a missing argument, or settings for a command that takes none.
        ConfigError: a setting without a value.
        SystemExit: help or the version was asked for and has been printed.
    """
    overrides, rest = _take_settings(argv)
    _check_words([token for token in rest if not token.startswith("-")])
    args, unknown = build_parser().parse_known_args(rest)
    if unknown:
        raise _unknown_argument(unknown[0], args)
    if args.definition is None or args.definition.run is None:
        args.spoken_by.print_help()
        args.spoken_by.exit()
    sections = args.definition.sections
    for key in overrides:
        if ALL_SECTIONS not in sections and key.partition(".")[0] not in sections:
            named = " and ".join(f"--{section}.key" for section in sections)
            takes = f"only {named} settings" if sections else "no recipe settings"
            raise UsageError(f"{args.spoken_by.prog} takes {takes}, not --{key}")
    args.overrides = [f"--{key}={value}" for key, value in overrides.items()]
    return args


def _add_commands(parser: Parser, prefix: str, commands: Mapping[str, Command]) -> None:
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, command in commands.items():
        path = f"{prefix} {name}".strip()
        child = subparsers.add_parser(
            name,
            prog=f"heliostat {path}",
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            usage=f"heliostat {path} {command.usage}" if command.usage else None,
            epilog=None if command.explains_settings or not command.sections else _SETTINGS_ELSEWHERE,
            explains_settings=command.explains_settings,
            sections=command.sections,
        )
        child.set_defaults(spoken_by=child, definition=command)
        command.add_arguments(child)
        if command.subcommands:
            _add_commands(child, path, dict(command.subcommands))


def _take_settings(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    if not any(token.startswith("--") and "." in token.partition("=")[0] for token in argv):
        return {}, list(argv)  # commands without settings skip this import
    from heliostat.config import split_overrides

    return split_overrides(argv)


def _check_words(words: Sequence[str], commands: Mapping[str, Command] = COMMANDS, above: str = "") -> None:
    """Refuse an unknown command and name the nearest one."""
    if not words or not commands:
        return
    if words[0] not in commands:
        hint = _nearest(words[0], commands)
        raise UsageError(f"unknown command '{above}{words[0]}'{hint}; there are: {', '.join(commands)}")
    _check_words(words[1:], dict(commands[words[0]].subcommands), f"{above}{words[0]} ")


def _unknown_argument(token: str, args: argparse.Namespace) -> UsageError:
    option = token.partition("=")[0]
    own = [name for action in args.spoken_by._actions for name in action.option_strings]
    prog, hint = args.spoken_by.prog, _nearest_option(option, own, args.definition)
    return UsageError(f"{prog} does not take '{option}'{hint} (see {prog} --help)")


def _nearest_option(option: str, own: Sequence[str], command: Command | None) -> str:
    """Suggest one of the command's own options, or the setting whose last part is the given name."""
    word = option.removeprefix("--")
    if command is None or ALL_SECTIONS not in command.sections or word == option:
        return _nearest(option, own)
    from heliostat.config import describe_keys, suggest

    setting = suggest(word).replace("'", "'--", 1)
    if any(key.name.endswith(f".{word}") for key in describe_keys()):
        return setting
    return _nearest(option, own) or setting


def _nearest(word: str, choices: Iterable[str]) -> str:
    from heliostat.config import nearest

    return nearest(word, choices)


def _default_text(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "empty" if default in ("", (), {}) else str(default)
