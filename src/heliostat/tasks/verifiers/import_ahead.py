"""Run the imports inside a function before its time limit starts.

A function that imports a large package at its first call (``import torch`` takes seconds, and longer on a busy
machine) would exceed a text's time limit. Its process would be killed, and the next one would hit the same import.

Left out: other work of a function's first call.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, MethodType
from typing import Any

from heliostat.nested_runs import NestedRun


def import_ahead(function: Callable[..., Any]) -> None:
    """Run the imports inside a function and the functions that it uses; failed imports are left to the call.

    Raises:
        NestedRun: one of the modules starts a run when it is imported.
    """
    for each in _functions(function, set()):
        for code in _codes(each.__code__):
            for name, names, level in _imports(code):
                try:
                    __import__(name, each.__globals__, None, names, level)
                except NestedRun:
                    raise
                except BaseException:  # SystemExit too: the call raises it again, and it becomes a failed verdict
                    continue


def _functions(function: Any, seen: set[int]) -> Iterator[FunctionType]:
    """Yield a function, and those that it names or closes over."""
    if id(function) in seen or isinstance(function, type):
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        yield from _functions(function.func, seen)
    elif isinstance(function, MethodType):
        yield from _functions(function.__func__, seen)
        yield from _functions(function.__self__, seen)
    elif isinstance(function, FunctionType):
        yield function
        used = [function.__globals__.get(name) for code in _codes(function.__code__) for name in code.co_names]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                used.append(cell.cell_contents)
        for value in used:
            if isinstance(value, FunctionType | MethodType | functools.partial):
                yield from _functions(value, seen)
    else:  # an object, which may use any method of its class
        for value in vars(type(function)).values():
            if isinstance(value, FunctionType):
                yield from _functions(value, seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _imports(code: CodeType) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield module, imported names and level of every import statement."""
    values: list[Any] = [0, None]
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, names = values[-2:]
            yield str(instruction.argval), tuple(names or ()), int(level)
        values.append(instruction.argval)
