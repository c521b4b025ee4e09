"""The command line: ``heliostat COMMAND ...`` reads arguments, hands over to the room that does the work, prints.

``arguments`` and ``parser`` know the grammar, ``commands`` what each command calls, ``tables`` how results look,
``entry`` how errors and interruptions end the process. Nothing here imports torch before a command needs it.

Left out: everything a command does; each is also a function of the Python API.
"""

from heliostat.cli.entry import main
from heliostat.cli.parser import UsageError, build_parser, parse

__all__ = ["UsageError", "build_parser", "main", "parse"]
