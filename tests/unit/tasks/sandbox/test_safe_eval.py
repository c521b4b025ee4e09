"""Model text stays text: what libraries would have run as Python is read as data, and the net catches the rest."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config import TaskSection
from heliostat.tasks import VerifierPool, load_task
from heliostat.tasks.sandbox.safe_eval import evaluate_literal
from heliostat.tasks.task import WeightedVerifier
from heliostat.tasks.verifiers.builtin import Math
from tests.support.tasks import make_task

# Scorers that pass the answer to eval, directly (the first four) or through sympy's parser.
EVALUATING = ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens"]
EVALUATING += ["countdown", "polynomial_multiplication", "simple_integration", "puzzle24"]

data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(data)
def test_literals_read_as_python_reads_them(value: object) -> None:
    assert evaluate_literal(repr(value)) == ast.literal_eval(repr(value)) == value


@given(
    st.integers(-99, 99), st.integers(1, 99), st.sampled_from(["+", "-", "*", "/", "//", "%", "|", "&", "^", "<", ">="])
)
def test_arithmetic_reads_as_python_computes_it(left: int, right: int, sign: str) -> None:
    source = f"(({left}) {sign} {right}) * 2"
    assert evaluate_literal(source) == eval(source)


ATTACKS = [
    "__import__('os').system('touch {file}')",
    "open('{file}', 'w')",
    "[open('{file}', 'w') for _ in '1']",
    "(lambda: open('{file}', 'w'))()",
    "().__class__.__base__.__subclasses__()",
    "exec(\"open('{file}', 'w')\")",
    "sympify(\"open('{file}', 'w')\")",
    "lambdify((), \"open('{file}', 'w')\")()",
    "sin(\"open('{file}', 'w')\")",
    "Symbol('x').__class__",
    'f\'{{open("{file}", "w")}}\'',
    "1 if open('{file}', 'w') else 2",
    "integrate(x**2, x)",
    "Integral(x**2, x)",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_anything_but_data_and_arithmetic_is_refused(attack: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not plain data or mathematics"):
        evaluate_literal(attack.format(file=tmp_path / "file"))
    assert not (tmp_path / "file").exists()


@pytest.mark.slow
def test_no_attack_reaches_the_disk_through_the_workers_and_right_answers_still_score(tmp_path: Path) -> None:
    tasks = [load_task(TaskSection(name=f"reasoning-gym/{name}", num_train=1, num_heldout=1), 0) for name in EVALUATING]
    tasks.append(make_task(WeightedVerifier("math", Math()), name="mathematics"))
    attacks = [attack.format(file=tmp_path / "file") for attack in ATTACKS]
    with VerifierPool(tasks) as pool:
        for task in tasks:
            problem = task.train[0]
            right, *wrong = pool.judge(problem, [problem.answer, *attacks]).result()
            assert right.success, task.name
            assert not any(verdict.success for verdict in wrong), task.name
    assert not (tmp_path / "file").exists()


UNSEALED = """
import sys
from reasoning_gym.factory import DATASETS
dataset, config = DATASETS["binary_matrix"]
dataset = dataset(config(seed=0, size=1))
dataset.score_answer(sys.argv[1], dataset[0])
"""

NET = """
import sys, pickle, collections
from heliostat.tasks.sandbox import safe_eval
safe_eval.install_audit_hook()
eval("1")  # not while a text is judged
def protected(act):
    try:
        act()
    except BaseException:  # as some scorers do
        pass
evaluator = pickle.dumps(safe_eval.LiteralEvaluator)
for act in (lambda: eval("1 + 1"), lambda: pickle.loads(evaluator), lambda: exec("x = 1")):
    for shield in (act, lambda: protected(act)):
        try:
            with safe_eval.restricted_execution():
                shield()
        except PermissionError as error:
            assert "what a model wrote" in str(error)
        else:
            sys.exit(f"{act} went through")
with safe_eval.restricted_execution():
    import dataclasses, fractions, xml.etree.ElementTree, json.tool  # importing defines named tuples from strings
    assert safe_eval.evaluate_literal("[1, 2]") == [1, 2]
print("held")
"""


@pytest.mark.slow
def test_without_the_seal_the_first_attack_does_reach_the_disk(tmp_path: Path) -> None:
    attack = ATTACKS[0].format(file=tmp_path / "file")
    subprocess.run([sys.executable, "-c", UNSEALED, attack], check=True)
    assert (tmp_path / "file").exists()


def test_the_net_refuses_evaluation_even_where_the_scorer_hides_it() -> None:
    done = subprocess.run([sys.executable, "-c", NET], capture_output=True, text=True)
    assert done.stdout == "held\n", done.stdout + done.stderr
