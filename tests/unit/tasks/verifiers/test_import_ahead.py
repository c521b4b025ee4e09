"""Imports inside reward functions happen before the first text's clock runs."""

import functools
import subprocess
import sys
import types

import pytest

from heliostat.config import ConfigError, build_recipe
from heliostat.nested_runs import NestedRun
from heliostat.tasks.data.in_memory import registering, with_registered
from heliostat.tasks.settings import build_verifiers, check_needs, make_task
from heliostat.tasks.verifiers.builtin import Sample
from heliostat.tasks.verifiers.import_ahead import import_ahead
from heliostat.types import Problem

NAMES = ("plain", "dotted.inner", "package.part", "late", "nested", "used", "closed")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that nobody has imported; ``sys.modules`` says who has."""
    for name in NAMES:
        path = tmp_path / f"slow_{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").write_text("")
        path.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: {name for name in NAMES if f"slow_{name}" in sys.modules}
    for name in [name for name in sys.modules if name.startswith("slow_")]:
        del sys.modules[name]


def helper():
    import slow_used

    return slow_used.VALUE


def closing(inner):
    def reward(completions):
        import slow_dotted.inner
        import slow_plain
        from slow_package import part

        def later():
            import slow_nested

            return slow_nested

        if len(completions) > 99:
            import slow_late  # noqa: F401
            import slow_missing  # noqa: F401
        return [helper() + inner() + later().VALUE + part.VALUE + slow_plain.VALUE + slow_dotted.inner.VALUE]

    return reward


def closed():
    import slow_closed

    return slow_closed.VALUE


class Judge:
    def __call__(self, completions):
        return closing(closed)(completions)

    def method(self, completions):
        return self(completions)


WRAPS = (lambda f: f, functools.partial, lambda f: types.MethodType(f, 1), lambda f: Judge(), lambda f: Judge().method)


@pytest.mark.parametrize("wrap", WRAPS)
def test_every_import_statement_that_a_function_leads_to_is_carried_out(modules, wrap):
    function = wrap(closing(closed))
    assert modules() == set()
    import_ahead(function)
    assert modules() == set(NAMES)


def test_a_relative_import_is_that_of_the_functions_package(tmp_path, monkeypatch):
    (tmp_path / "slow_kit").mkdir()
    (tmp_path / "slow_kit" / "__init__.py").write_text("")
    (tmp_path / "slow_kit" / "part.py").write_text("")
    (tmp_path / "slow_kit" / "reward.py").write_text("def f(completions):\n    from . import part\n    return [part]\n")
    monkeypatch.syspath_prepend(tmp_path)
    import slow_kit.reward

    import_ahead(slow_kit.reward.f)
    assert "slow_kit.part" in sys.modules


@pytest.mark.parametrize("line", ["raise SystemExit(3)", "1 / 0", "import nowhere_at_all"])
def test_a_module_that_cannot_be_imported_is_left_to_the_call(tmp_path, monkeypatch, line):
    (tmp_path / "slow_broken.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)

    def reward(completions):
        import slow_broken

        return slow_broken

    import_ahead(reward)
    with pytest.raises((SystemExit, ZeroDivisionError, ImportError)):
        reward([])


def test_a_module_that_trains_is_not_left_to_the_call(tmp_path, monkeypatch):
    (tmp_path / "slow_training.py").write_text("from heliostat.nested_runs import *\nrefuse_nested('a run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HELIOSTAT_VERIFIER_PROCESS", "1")

    def reward(completions):
        import slow_training

        return slow_training

    with pytest.raises(NestedRun):
        import_ahead(reward)


def test_a_verifier_imports_when_it_is_made_ready(modules):
    with registering() as given:
        tables = with_registered(build_recipe({}), given, None, [closing(closed)])
        (weighted,) = build_verifiers(tables["task"][0]["verifiers"])
    check = weighted.verifier.prepare()
    assert modules() == set(NAMES)
    assert check(Sample("", None, {}, "7")) == 6


def test_nothing_is_imported_by_looking():
    code = "import heliostat.tasks.verifiers.import_ahead, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


class Wants:
    def __init__(self, weight):
        self.weight = weight


def yields(completions):
    yield 1.0


async def yields_later(completions):
    yield 1.0


class Yields:
    def __call__(self, completions):
        yield 1.0


def by_position(prompts, completions, /):
    return [1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (Wants, "is a class; give an object of it"),
        (yields, "yields its rewards"),
        (yields_later, "yields its rewards"),
        (Yields(), "yields its rewards"),
        (by_position, "takes 'prompts' by position only"),
    ],
)
def test_what_could_never_give_a_reward_is_refused_before_anything_starts(reward, reason):
    problems = tuple(Problem(str(number), "data", "?") for number in range(2))
    with registering() as given:
        verifiers = build_verifiers(with_registered(build_recipe({}), given, None, [reward])["task"][0]["verifiers"])
        from heliostat.tasks.settings import TaskSettings

        task = make_task(TaskSettings(), "data", (problems[:1], problems[1:]), verifiers, "")
        with pytest.raises(ConfigError, match=reason):
            check_needs(task)
