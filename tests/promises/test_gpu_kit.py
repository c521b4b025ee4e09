"""The kit for a machine with a GPU runs on a CPU too, so that it still works on the day when there is a GPU."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import small

KIT = Path(__file__).parents[2] / "benchmarks" / "gpu"
NEEDS_CUDA = "skipped: needs CUDA"
SKIPPED = {
    "decoding pass, CUDA graph": NEEDS_CUDA,
    "decoding pass, compiled": NEEDS_CUDA,
    "waits for the GPU": NEEDS_CUDA,
    "race": "skipped: needs --trl-python",
}


def kit(*args):
    command = [sys.executable, str(KIT / "kit.py"), *map(str, args)]
    return subprocess.run(command, env=small.environment(), text=True, capture_output=True, timeout=240, check=False)


def test_every_case_runs_on_a_cpu(tmp_path):
    out = tmp_path / "the results"
    done = kit("--device", "cpu", "--model", "tiny", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (out / "cpu.json").read_text()
    found = json.loads(text)
    statuses = {name: case["status"] for name, case in found["cases"].items()}
    assert {name: status for name, status in statuses.items() if status != "right"} == SKIPPED
    assert {case["device"] for case in found["cases"].values()} == {"cpu"}
    assert found["budget_s"] < 540
    assert str(tmp_path) not in text
    assert str(KIT.parents[1]) not in text
    ways = found["cases"]["decoding parity"]["findings"]["ways"]
    assert {way["dtype"] for way in ways if way["verdict"] == "right"} == {"float32", "bfloat16"}
    killed = found["cases"]["kill and resume"]["findings"]
    assert 3 <= killed["killed_after_step"] < 6
    assert killed["difference_after_the_kill"] == 0
    page = (out / "page.md").read_text()
    assert "Not run on a GPU" in page
    assert all(f"| {name} | cpu | {status} |" in page for name, status in statuses.items())


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.syspath_prepend(str(KIT))
    return importlib.import_module("apart")


def test_a_broken_case_is_one_line(apart, tmp_path):
    def raises():
        raise ValueError("no such kernel\nand a long story")

    assert apart.run(lambda: {"answer": 42}, tmp_path / "well", 60).result == {"answer": 42}
    assert apart.run(raises, tmp_path / "raises", 60).fault == "ValueError: no such kernel"
    assert apart.run(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "dies", 60).fault == "ended by SIGKILL"
    assert apart.run(lambda: time.sleep(600), tmp_path / "hangs", 0.2).fault == "killed after 0 s"
