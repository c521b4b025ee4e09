"""Runs of the command line against a server: a recipe, its folder, and what became of it.

Left out: the server (``environment``), and the cases (``try_vllm``, ``teaching``).
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from environment import free_port
from safetensors.torch import load_file

CHECKOUT = Path(__file__).parents[2]
RECIPE = """
[run]
num_threads = 1

[model]
path = "{model}"
dtype = "float32"

[task]
name = "file"
path = "{data}"
answer_column = "answer"
verifiers = [{{name = "digit_share:digit_share"}}]
shaped = true
num_train = 80
num_heldout = 20

[rollout]
{sampler}
prompts_per_step = 8
group_size = 4
max_new_tokens = 8

[objective]
name = "pmd-mean"

[optimizer]
lr = 1e-3

[train]
num_steps = 5
checkpoint_every = 2

[eval]
every = 5
num_problems = 20
"""
SAMPLER = """
engine = "vllm"
server_url = "http://127.0.0.1:{port}/v1"
server_retries = 1
sync_dir = "{folder}/sync"
"""
REWARD = '''
def digit_share(completions, **columns):
    """A reward that random weights earn a part of, so that every step moves the weights."""
    return [sum(one.isdigit() for one in text) / max(1, len(text)) for text in completions]
'''


@dataclass
class Trial:
    """One place for all runs: a folder, a recipe, and the server's port."""

    folder: Path
    recipe: Path
    port: int

    def place(self, run: str) -> Path:
        return self.folder / "runs" / run

    def command(self, run: str, **options: object) -> list[str]:
        pairs = [part for key, value in options.items() for part in (f"--{key.replace('__', '.')}", str(value))]
        return [sys.executable, "-m", "heliostat", "train", str(self.recipe), "--run", str(self.place(run)), *pairs]

    def environment(self) -> dict[str, str]:
        path = f"{CHECKOUT / 'src'}{os.pathsep}{self.folder}"
        return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}

    def train(self, run: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = self.command(run, **options)
        return subprocess.run(command, env=self.environment(), text=True, capture_output=True, timeout=600)

    def rows(self, run: str) -> list[dict]:
        return [json.loads(line) for line in (self.place(run) / "metrics.jsonl").read_text().splitlines()]

    def gap(self, run: str) -> float:
        """The largest gap of a run's training steps in nats."""
        return max(row["policy/sampler_gap"] for row in self.rows(run) if "policy/sampler_gap" in row)


def trial(folder: Path, model: Path, *, samples: bool = True) -> Trial:
    """Write a recipe for a server, which ``samples`` or is asked for something else."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "digit_share.py").write_text(REWARD)
    recipe = folder / "recipe.toml"
    sampler = SAMPLER.format(port=port, folder=folder) if samples else ""
    recipe.write_text(RECIPE.format(model=model, data=data, sampler=sampler))
    return Trial(folder, recipe, port)


def finished_run(here: Trial, run: str, **options: object) -> int:
    """Train to the end, and return the seconds that it took."""
    start = time.monotonic()
    done = here.train(run, **options)
    if done.returncode != 0:
        raise SystemExit(f"{run}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return round(time.monotonic() - start)


def refused(here: Trial, run: str, words: str, **options: object) -> dict:
    """Train, and expect a sentence with these words."""
    done = here.train(run, **options)
    said = next((line for line in reversed(done.stderr.splitlines()) if "heliostat: " in line), "")
    if done.returncode == 0 or words not in said:
        raise SystemExit(f"{run}: expected '{words}', got {done.stdout[-500:]}{done.stderr[-2000:]}")
    return {"said": without_folder(said, here)}


def without_folder(text: str, here: Trial) -> str:
    return text.replace(str(here.folder), "FOLDER").replace(str(here.port), "PORT")


def kill_at_step(here: Trial, run: str, step: int, **options: object) -> None:
    """Begin a run, and kill it at the checkpoint of a step."""
    command = here.command(run, **options)
    process = subprocess.Popen(command, env=here.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(here, run, step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def apart(here: Trial, one: str, other: str) -> float:
    """Return the largest difference of two runs' weights."""
    ours, theirs = (load_file(here.place(run) / "model" / "model.safetensors") for run in (one, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def wait_for_step(here: Trial, run: str, step: int, process: subprocess.Popen) -> None:
    path = here.place(run) / "checkpoints"
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{run} ended before step {step}: {process.communicate()}")
        if any(str(step) in entry.name for entry in path.glob("*")):
            return
        time.sleep(0.05)
    raise SystemExit(f"{run}: no checkpoint of step {step}")


def asked(port: int, method: str, path: str, body: dict | None = None) -> dict:
    """Return status and answer of a route, texts and numbers as they came."""
    data = None if body is None else json.dumps(body).encode()
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    return {"status": status, "answer": answer}
