"""The command line: ``heliostat COMMAND ...`` reads arguments, calls the package that does the work, prints results.

``arguments`` and ``parser`` define the grammar, ``commands`` calls the Python API, ``tables`` formats results, and
``entry`` turns errors and interruptions into exit codes. Nothing here imports torch before a command needs it.

Left out: the work of a command; each is also a function of the Python API.
"""

from heliostat.cli.entry import main
from heliostat.cli.parser import UsageError, build_parser, parse

__all__ = ["UsageError", "build_parser", "main", "parse"]
