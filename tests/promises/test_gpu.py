"""Smoke tests for a machine with a CUDA device: a whole run in bfloat16, sharded ranks over NCCL, a real vLLM server.

    python -m pytest -m gpu tests/promises/test_gpu.py

They skip themselves elsewhere; the last one also where ``vllm`` is not installed.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
import torch

from heliostat.config import ModelSection
from heliostat.models import load_model, save_model
from heliostat.train import run_recipe
from tests.promises.test_ranks import run, write_recipe
from tests.support import small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_learns_on_the_device(dtype, tmp_path):
    result = run_recipe(small.recipe(tmp_path, **{"model.dtype": dtype}), tmp_path / "run")
    assert result.status == "finished", result.reason
    assert result.after.pass_at_1 > 0
    gaps = [row["policy/sampler_gap"] for row in small.metrics(tmp_path / "run") if "policy/sampler_gap" in row]
    assert gaps


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_ranks_over_nccl(tmp_path):
    options = {"--distributed.placement": "sharded"}
    done = run(write_recipe(tmp_path), tmp_path / "run", **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("vllm") is None, reason="needs vllm")
def test_a_real_server(tmp_path):
    recipe = small.recipe(tmp_path)
    model = load_model(ModelSection(path="tiny", settings=recipe.model.settings), 0)
    save_model(model, tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["vllm", "serve", str(tmp_path / "model"), "--port", str(port), "--gpu-memory-utilization", "0.3",
               "--max-model-len", "256", "--logprobs-mode", "processed_logprobs"]  # fmt: skip
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"}, stdout=log, stderr=log)
    try:
        wait_for(server, f"{url}/health", tmp_path / "server.log")
        changes = {"model.path": str(tmp_path / "model"), "model.settings": {}, "rollout.engine": "vllm",
                   "rollout.server_url": url, "rollout.sync_dir": str(tmp_path / "sync")}  # fmt: skip
        result = run_recipe(small.recipe(tmp_path, **changes), tmp_path / "run")
        assert result.status == "finished", result.reason
    finally:
        server.terminate()
        server.wait(60)


def wait_for(server, url, log, seconds=300):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(2)
    raise AssertionError(f"no server after {seconds} s: {log.read_text()[-2000:]}")
