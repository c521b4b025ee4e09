"""``heliostat completion``: print a script by which a shell completes commands, options, settings, recipes and folders.

The script is static, so completing starts no Python. Words are completed by an argument's metavar: RECIPE means the
same in every command.

Left out: the scripts' grammar (the package ``shtab``), and the commands (``arguments``).
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliostat.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")
MODELS = ("tiny", "smollm2-135m")
_RECIPES, _MODELS, _FILES, _FOLDERS = "recipe_file", "model_dir", "file", "dir"
_COMPLETED = {
    **dict.fromkeys(("RECIPE", "TASK"), _RECIPES),
    **dict.fromkeys(("FILE", "BANK", "SOURCE", "PATH"), _FILES),
    **dict.fromkeys(("DIR", "RUN", "FOLDER", "TARGET"), _FOLDERS),
    "MODEL": _MODELS,
}

# A name with "_file" or "_dir" makes shtab tell bash that it completes paths. The word may hold the backslashes that
# were typed before its spaces.
_BASH = """
_heliostat_file() { compgen -f -- "${1//\\\\/}"; }
_heliostat_dir() { compgen -d -- "${1//\\\\/}"; }
_heliostat_recipe_file() {
  compgen -W '@RECIPES@' -- "$1"
  compgen -f -X '!*.toml' -- "${1//\\\\/}"
  compgen -d -- "${1//\\\\/}"
}
_heliostat_model_dir() { compgen -W '@MODELS@' -- "$1"; compgen -d -- "${1//\\\\/}"; }
"""
_ZSH = """
_heliostat_file() { _files }
_heliostat_dir() { _files -/ }
_heliostat_recipe_file() {
  _alternative 'recipes:shipped recipe:(@RECIPES@)' 'files:recipe or run folder:_files -g "*.toml(-.)"'
}
_heliostat_model_dir() { _alternative 'models:bundled model:(@MODELS@)' 'files:folder:_files -/' }
"""
_FISH = """
function _heliostat_file; __fish_complete_path (commandline -ct); end
function _heliostat_dir; __fish_complete_directories (commandline -ct); end
function _heliostat_recipe_file
  printf '%s\\n' @RECIPES@
  __fish_complete_suffix .toml
end
function _heliostat_model_dir
  printf '%s\\n' @MODELS@
  __fish_complete_directories (commandline -ct)
end
"""
_FUNCTIONS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_CALLS = {"bash": "_heliostat_{}", "zsh": "_heliostat_{}", "fish": "(_heliostat_{})"}


def completion(args: Namespace) -> int:
    """Run ``heliostat completion``: print the script of one shell."""
    print(completion_script(args.shell))
    return 0


def completion_script(shell: str) -> str:
    """Build the script that completes ``heliostat`` in a shell.

    Args:
        shell: one of ``SHELLS``.
    """
    import shtab

    from heliostat.cli.parser import build_parser
    from heliostat.config import recipe_names

    parser = build_parser()
    for each in _with_subparsers(parser):
        _describe(each, shell)
    words = _FUNCTIONS[shell].replace("@RECIPES@", " ".join(recipe_names())).replace("@MODELS@", " ".join(MODELS))
    script: str = shtab.complete(parser, shell, preamble=words)
    return script


def _with_subparsers(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _with_subparsers(child)


def _describe(parser: Parser, shell: str) -> None:
    """Add the settings that a command takes to its options, and say how its arguments are completed."""
    parser.list_settings()
    for action in parser._actions:
        kind = _COMPLETED.get(str(action.metavar))
        if kind is not None:
            action.complete = {shell: _CALLS[shell].format(kind)}  # type: ignore[attr-defined]
