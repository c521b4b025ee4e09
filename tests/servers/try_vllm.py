"""Train, evaluate, kill and continue on a real vLLM server, and record what it answered (make vllm).

    python tests/servers/try_vllm.py --venv .venv-vllm [--only teaching]

The first call installs vLLM's CPU build; later ones take about ten minutes on one core. Results, versions included, go
to ``tests/servers/results``, and the answer of every route to ``tests/reference/vllm_answers.json``, which the fake
server of the tests is held to. Every case is checked here: a wrong result ends the script.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from environment import TORCH, VLLM, free_port, install, make_model, serving, start_server, stop_server
from running import (
    CHECKOUT,
    Trial,
    apart,
    asked,
    finished_run,
    kill_at_step,
    refused,
    trial,
    wait_for_step,
    without_folder,
)
from teaching import teaching_cases

import heliostat

RESULTS = Path(__file__).parent / "results" / "vllm_cpu.json"
ANSWERS = CHECKOUT / "tests" / "reference" / "vllm_answers.json"


def finished(here: Trial, run: str, bound: float = 1e-4, **options: object) -> dict:
    """Train to the end and return the measured gap."""
    seconds = finished_run(here, run, **options)
    gap = here.gap(run)
    assert gap < bound, f"{run}: {gap} nats"
    return {"gap_nats": float(f"{gap:.2g}"), "seconds": seconds}


def killed_and_resumed(here: Trial) -> dict:
    """Kill a run at its second checkpoint, continue it, and compare its weights with those of one that ran through."""
    kill_at_step(here, "killed", 4, rollout__max_staleness=1)
    result = finished(here, "killed", rollout__max_staleness=1)
    assert apart(here, "stale", "killed") == 0
    return result | {"weights": "those of the run that was not killed, bit for bit"}


def server_replaced(
    here: Trial, commands: Path, model: Path, server: subprocess.Popen
) -> tuple[dict, subprocess.Popen]:
    """Kill the server under a run, start another one on another port, and continue."""
    process = subprocess.Popen(
        here.command("replaced", train__num_steps=8), env=here.environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_step(here, "replaced", 2, process)
    stop_server(server)
    start = time.monotonic()
    _, errors = process.communicate(timeout=300)
    stopped = round(time.monotonic() - start)
    assert process.returncode != 0
    port = free_port()
    server = start_server(commands, model, here.folder / "server.log", port)
    here.recipe.write_text(here.recipe.read_text().replace(str(here.port), str(port)))
    said = without_folder(errors.strip().splitlines()[-1], here)
    here.port = port
    result = finished(here, "replaced", train__num_steps=8)
    return result | {"stopped_after_seconds": stopped, "said": said}, server


def recorded(here: Trial, model: Path, adapter: Path) -> dict:
    """Ask every route once, the way the client does, and return the answers."""
    completion = {"model": str(model), "prompt": [5, 6, 7], "n": 2, "seed": 3, "max_tokens": 4, "temperature": 0.7,
                  "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": [], "stop_token_ids": [2],
                  "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False}  # fmt: skip
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(model)}}
    lora = {"lora_name": "one", "lora_path": str(adapter)}
    asks = {
        "/v1/models": ("GET", None),
        "/server_info?config_format=json": ("GET", None),
        "/weight_info": ("GET", None),
        "/v1/completions": ("POST", completion),
        "/pause?mode=wait": ("POST", None),
        "/collective_rpc": ("POST", reload),
        "/collective_rpc get_model_inspection": ("POST", {"method": "get_model_inspection"}),
        "/reset_prefix_cache": ("POST", None),
        "/update_weight_version": ("POST", {"new_version": "recorded"}),
        "/resume": ("POST", None),
        "/v1/load_lora_adapter": ("POST", lora),
        "/v1/unload_lora_adapter": ("POST", {"lora_name": "one"}),
        "/v1/unload_lora_adapter again": ("POST", {"lora_name": "one"}),
    }
    answers = {name: asked(here.port, method, name.split()[0], body) for name, (method, body) in asks.items()}
    settings = answers["/server_info?config_format=json"]["answer"]
    kept = {key: settings["vllm_config"]["model_config"][key] for key in ("dtype", "logprobs_mode", "max_model_len")}
    answers["/server_info?config_format=json"]["answer"] = {"vllm_config": {"model_config": kept}}
    text = json.dumps(answers).replace(str(here.folder), "FOLDER")
    return json.loads(text.replace(f"heliostat/{platform.node()}/", "heliostat/HOST/"))


def folder_size(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def run_rollouts(folder: Path, commands: Path) -> tuple[dict, dict]:
    model = make_model(folder / "model")
    here = trial(folder, model)
    results = {}

    def note(name: str, result: dict) -> None:
        results[name] = result
        print(f"{name}: {result}", flush=True)

    server = start_server(commands, model, folder / "server.log", here.port)
    try:
        note("LoRA, the adapter alone", finished(here, "adapter", lora__rank=4, rollout__sync="adapter"))
        adapter, whole = here.place("adapter") / "adapter", folder / "model"
        sizes = {"adapter_bytes": folder_size(adapter), "model_bytes": folder_size(whole)}
        results["LoRA, the adapter alone"] |= sizes
        answers = recorded(here, model, adapter)
        note("training and evaluation", finished(here, "plain"))
        note("temperature 0.7", finished(here, "cool", rollout__temperature=0.7))
        note("staleness 1", finished(here, "stale", rollout__max_staleness=1))
        note("kill -9 at a checkpoint, continued", killed_and_resumed(here))
        note("LoRA, whole weights", finished(here, "lora", lora__rank=4, rollout__sync="weights"))
        deeper = make_model(folder / "deeper", num_layers=3)
        note("a deeper model", refused(here, "deeper", "serves another model", model__path=deeper))
        long = {"train__num_steps": 1, "rollout__max_new_tokens": 8, "model__dtype": "bfloat16"}
        note("a bfloat16 trainer, float32 server", finished(here, "mixed", bound=0.5, **long))
        result, server = server_replaced(here, commands, model, server)
        note("server killed and replaced", result)
    finally:
        stop_server(server)
    note("a server for shorter texts", short_server(here, commands, model))
    note("a tied output projection", tied_server(here, commands))
    return results, answers


def run_teaching(folder: Path, commands: Path) -> tuple[dict, dict]:
    """Return what became of a teacher and a judge, and the server's answers."""
    model = make_model(folder / "model")
    here = trial(folder / "apart", model, samples=False)
    results, answers = teaching_cases(commands, here, model)
    print(json.dumps(results, indent=1), flush=True)
    return results, json.loads(json.dumps(answers).replace(str(here.folder), "FOLDER"))


def short_server(here: Trial, commands: Path, model: Path) -> dict:
    """A limit of 12 tokens, raw log-probabilities: each is refused before anything is sent."""
    more = ("--max-model-len", "12", "--logprobs-mode", "raw_logprobs")
    with serving(commands, model, here.folder / "server.log", here.port, *more):
        short = refused(here, "short", "would cut", rollout__max_new_tokens=40)
        raw = refused(here, "raw", "--logprobs-mode processed_logprobs", rollout__temperature=0.7)
    return {"limit": short["said"], "raw log-probabilities": raw["said"]}


def tied_server(here: Trial, commands: Path) -> dict:
    """The CPU build packs an output projection, and keeps the old one when a tied one is reloaded."""
    tied = make_model(here.folder / "tied", tied=True)
    with serving(commands, tied, here.folder / "server.log", here.port):
        return refused(here, "tied", "tied output projection", model__path=tied)


PARTS = {"rollouts": run_rollouts, "teaching": run_teaching}
"""The parts of this script, each with models and servers of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=CHECKOUT / ".venv-vllm")
    parser.add_argument("--python", default=sys.executable, help="for the environment of vLLM")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the others keep their results")
    options = parser.parse_args()
    commands = install(options.venv.resolve(), options.python)
    results, answers = (read(path, key) for path, key in ((RESULTS, "cases"), (ANSWERS, "answers")))
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="heliostat-vllm-") as name:
            found, answered = PARTS[part](Path(name), commands)
        results, answers = results | found, answers | answered
    versions = {"heliostat": heliostat.__version__, "vllm-cpu": VLLM, "torch of the server": TORCH,
                "torch": torch.__version__, "transformers": transformers.__version__,
                "python": platform.python_version()}  # fmt: skip
    write(RESULTS, {"versions": versions, "cases": results})
    write(ANSWERS, {"vllm-cpu": VLLM, "answers": answers})


def read(path: Path, key: str) -> dict:
    return json.loads(path.read_text())[key] if path.exists() else {}


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
