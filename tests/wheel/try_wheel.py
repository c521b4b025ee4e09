"""Build the wheel, install it without extras in a fresh environment, and run the first commands in an empty folder.

    python tests/wheel/try_wheel.py        (make wheel; about two minutes, most of them installing)

The check fails unless the run leaves its report and its model, and unless the module that ran is the installed one.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PARTS_OF_THE_WHEEL = ("pyproject.toml", "DESCRIPTION.md", "LICENSE", "src")
PIP = ("-m", "pip", "--disable-pip-version-check")
SHORT = {
    "warm_start.num_steps": 2,
    "train.num_steps": 1,
    "run.num_threads": 1,
    "task.num_heldout": 20,
    "eval.num_problems": 20,
    "eval.final_samples": 1,
}


def main() -> None:
    """Run the whole check in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="heliostat-wheel-") as name:
        folder = Path(name)
        python = fresh_environment(folder / "environment")
        install(python, "torch")  # first, by its pin: an open range pulls CUDA packages
        install(python, str(build(folder)))
        empty = folder / "empty"
        empty.mkdir()
        train(python, empty)
        start_own_task(python, empty)
        print(f"the wheel trains from an empty folder: {check(python, empty)}")


def fresh_environment(folder: Path) -> Path:
    """Create a virtual environment and return its interpreter."""
    run(sys.executable, "-m", "venv", str(folder))
    return folder / "bin" / "python"


def build(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that nothing stale of the checkout gets in."""
    sources = folder / "sources"
    sources.mkdir()
    for part in PARTS_OF_THE_WHEEL:
        copy = shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy
        copy(CHECKOUT / part, sources / part)
    shutil.rmtree(sources / "src" / "heliostat.egg-info", ignore_errors=True)
    run(sys.executable, *PIP, "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(sources))
    (wheel,) = (folder / "dist").glob("heliostat-*.whl")
    return wheel


def install(python: Path, package: str) -> None:
    """Install a package at the versions of the constraints file."""
    run(str(python), *PIP, "install", "-q", "-c", str(CHECKOUT / "constraints.txt"), package)


def train(python: Path, folder: Path) -> None:
    """Run a short ``heliostat train demo`` in ``folder``."""
    settings = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    run(str(python.parent / "heliostat"), "train", "demo", *settings, folder=folder)


def start_own_task(python: Path, folder: Path) -> None:
    """Run ``heliostat init`` on problems, and the command that it prints, shortened."""
    rows = [{"question": f"after {number} comes", "result": number + 1} for number in range(100)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heliostat = python.parent / "heliostat"
    printed = run(str(heliostat), "init", "problems.jsonl", "--json", folder=folder, stdout=subprocess.PIPE).stdout
    (command,) = json.loads(printed)["next"]
    short = {name: value for name, value in SHORT.items() if not name.startswith("task.")}
    settings = [word for name, value in short.items() for word in (f"--{name}", str(value))]
    run(str(heliostat), *shlex.split(command)[1:], *settings, folder=folder)
    if not (folder / "runs" / "mine" / "model" / "model.safetensors").exists():
        sys.exit(f"'{command}' has left no model")


def check(python: Path, folder: Path) -> str:
    """Return the module's version and place after checking that the run and the installation are complete."""
    (trained,) = (folder / "runs").glob("demo-*")
    for product in ("report.html", "model/model.safetensors", "summary.json"):
        if not (trained / product).exists():
            sys.exit(f"{trained} has no {product}")
    where = "import heliostat; print(heliostat.__version__, heliostat.__file__)"
    shown = run(str(python), "-c", where, folder=folder, stdout=subprocess.PIPE).stdout.strip()
    if str(python.parents[1]) not in shown:
        sys.exit(f"not the installed package: {shown}")
    return shown


def run(*command: str, folder: Path | None = None, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without ``PYTHONPATH``: pip takes the checkout's sources on it for an installed package."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, check=True, cwd=folder, env=variables, stdout=stdout, text=True)


if __name__ == "__main__":
    main()
