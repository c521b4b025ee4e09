"""Stand-ins for the rooms behind the commands: they record how they were called.

``room`` replaces a whole module, and costs no import; ``within`` replaces single functions of the real one.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def room(monkeypatch):
    """``room("heliostat.train", run_recipe=result)`` puts a module in place whose functions record and return."""
    calls = []

    def install(module, **results):
        fake = ModuleType(module)
        for name, result in results.items():
            setattr(fake, name, _recorder(calls, name, result))
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return install


@pytest.fixture
def within(monkeypatch):
    """``within("heliostat.api", run_recipe=result)`` replaces functions of a real module; the rest of it stays real."""
    calls = []

    def install(module, **results):
        for name, result in results.items():
            monkeypatch.setattr(f"{module}.{name}", _recorder(calls, name, result))
        return calls

    return install


def _recorder(calls, name, result):
    def function(*args, **options):
        calls.append(SimpleNamespace(name=name, args=args, options=options))
        if isinstance(result, BaseException):
            raise result
        return result(*args, **options) if callable(result) else result

    return function
