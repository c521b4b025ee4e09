"""What importing this package costs, in a fresh interpreter."""

import subprocess
import sys

import pytest

HEAVY = "{'reasoning_gym', 'math_verify', 'sympy', 'datasets', 'pyarrow', 'pandas'}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import heliostat.tasks.verifier_pool.worker", "{'torch', 'numpy', 'pydantic'} | " + HEAVY),
        ("import heliostat.tasks.environments.worker", "{'torch', 'numpy', 'pydantic'} | " + HEAVY),
        ("import heliostat.tasks", "{'torch', 'numpy', 'pydantic'} | " + HEAVY),
        ("from heliostat.tasks import Task, VerifierPool, audit, list_tasks, load_task, show_task", HEAVY),
    ],
)
def test_heavy_packages_stay_out(code: str, heavy: str) -> None:
    check = f"import sys\n{code}\nloaded = sys.modules.keys() & ({heavy})\nassert not loaded, loaded"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_every_public_name_is_there() -> None:
    import heliostat.tasks as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018
