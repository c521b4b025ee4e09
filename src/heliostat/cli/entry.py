"""From ``sys.argv`` to an exit code: 0 done, 1 a bug (with its traceback), 2 a refusal (one line), 130 interrupted.

A refusal is an error for the user: one that a ``raise`` statement of this package raised (``ConfigError``,
``ValueError``, ``RuntimeError``, ``OSError``, ``ImportError``), a file that the operating system refused, or a missing
optional package. Everything else is a bug and keeps its traceback; ``--debug`` shows the traceback of refusals too.

Left out: the exit code of a run that ended by itself (``RunResult.exit_code``).
"""

from __future__ import annotations

import dis
import errno
import os
import sys
from collections.abc import Sequence

from heliostat.cli.python_prints import python_prints_visibly
from heliostat.printed import visible_line

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_SPOKEN = (ValueError, RuntimeError, OSError, ImportError)
_NOT_SPOKEN = (NotImplementedError, RecursionError)
_RAISE = dis.opmap["RAISE_VARARGS"]
EXTRAS = {
    "math_verify": "tasks",
    "datasets": "data",
    "pyarrow": "data",
    "fsspec": "data",
    "httpx2": "server",
    "scipy": "linalg",
    "matplotlib": "plots",
    "gguf": "smollm2",
    "tensorboard": "tensorboard",
    "gymnasium": "control",
    "stable_baselines3": "control",
    "sb3_contrib": "control",
    "peft": "lora",
    "wandb": "wandb",
    "trackio": "trackio",
    "lm_eval": "lm-eval",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code.

    Args:
        argv: arguments without the program's name; ``None``: those of this process.
    """
    with python_prints_visibly():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    from heliostat.cli.parser import parse

    try:
        args = parse(arguments)
        code: int = args.definition.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("heliostat: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe (head, less) has closed it: this is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if "--debug" in arguments or not is_refusal(error):
            raise
        print(f"heliostat: {one_line(error)}", file=sys.stderr)
        return int(getattr(error, "exit_code", EXIT_REFUSED))  # 1 if the evaluation failed


def is_refusal(error: BaseException) -> bool:
    """Whether an error is meant for the user and not for a programmer; see the top of this file."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return True
    if isinstance(error, ModuleNotFoundError) and _missing_extra(error):
        return True
    return isinstance(error, _SPOKEN) and not isinstance(error, _NOT_SPOKEN) and _raised_by_us(error)


def one_line(error: BaseException) -> str:
    """Format an error as one line; where a package is missing, name the extra that installs it."""
    if isinstance(error, ModuleNotFoundError) and (extra := _missing_extra(error)):
        return f"this needs the package {error.name}: pip install 'heliostat[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return visible_line(f"{error.filename}: {(error.strerror or type(error).__name__).lower()}")
    return visible_line(str(error)) or type(error).__name__


def _missing_extra(error: ModuleNotFoundError) -> str:
    return EXTRAS.get((error.name or "").partition(".")[0], "")


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame belongs to this package and stands at a ``raise`` statement."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] == "heliostat" and trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
