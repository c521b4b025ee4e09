"""Every check that needs a GPU, in one command: cases in processes of their own, to one JSON file and a page.

    python benchmarks/gpu/kit.py                               # the first GPU; nine minutes at most
    python benchmarks/gpu/kit.py --device cpu --model tiny     # the same code in seconds, without the GPU's own cases
    python benchmarks/gpu/kit.py --cases layouts attention
    python benchmarks/gpu/kit.py --trl-python PYTHON           # an interpreter that has TRL: a race too

A case that fails, crashes or hangs is recorded with one line, and the next one runs. The command ends with 1 if a case
failed or found a wrong number.

Left out: several GPUs, servers (``make vllm``), and vLLM in the race.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import apart
import page
import torch
from attention import attention
from cases import NEEDS_CUDA, Case, Findings, Setup, Skipped
from decoding import compiled, cuda_graph, growing_cache
from parity import decoding_parity, layout_parity, waits
from shapes import SIZES
from training import kill_and_resume, large_step, profile, race

RESULTS = Path(__file__).resolve().parent / "results"

CASES = (
    Case("decoding parity", 50, decoding_parity),
    Case("layouts", 30, layout_parity),
    Case("kill and resume", 60, kill_and_resume),
    Case("profile", 60, profile),
    Case("decoding pass", 30, growing_cache),
    Case("decoding pass, CUDA graph", 30, cuda_graph, needs_cuda=True),
    Case("decoding pass, compiled", 60, compiled, needs_cuda=True),
    Case("attention", 40, attention),
    Case("waits for the GPU", 20, waits, needs_cuda=True),
    Case("step of the large shape", 50, large_step),
    Case("race", 85, race),
)
"""In order of importance; with ``MACHINE_S`` their budgets are under nine minutes."""

MACHINE_S = 20  # a context and a query of the driver


def machine(setup: Setup) -> Findings:
    """Describe the device, its driver and the versions."""
    about: Findings = {
        "device": setup.device.type,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("heliostat", "torch", "transformers")},
    }
    if not setup.on_cuda:
        return about | {"card": f"CPU, {torch.get_num_threads()} threads"}
    found = torch.cuda.get_device_properties(setup.device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, text=True, capture_output=True, check=False, timeout=5).stdout.split()
    except OSError:
        said = []  # a card without nvidia-smi
    return about | {
        "card": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": said[0] if said else "unknown",
    }


def patience(setup: Setup) -> int:
    """Return the factor of all budgets: they are a GPU's, and a busy CPU may take longer."""
    return 1 if setup.on_cuda else 10


def outcome(case: Case, setup: Setup) -> dict[str, Any]:
    """Run one case apart; return its status, seconds and findings."""

    def work() -> Findings:
        try:
            return {"findings": case.run(setup)}
        except Skipped as reason:
            return {"skipped": str(reason)}

    about: dict[str, Any] = {"device": setup.device.type}
    if case.needs_cuda and not setup.on_cuda:
        return about | {"status": NEEDS_CUDA}
    ended = apart.run(work, setup.folder, case.seconds * patience(setup))
    about["seconds"] = round(ended.seconds, 1)
    if ended.fault:
        return about | {"status": f"failed: {without_folder(ended.fault, setup.folder)}"}
    if "skipped" in ended.result:
        return about | {"status": ended.result["skipped"]}
    findings = ended.result["findings"]
    return about | {"status": "wrong" if findings.get("faults") else "right", "findings": findings}


def without_folder(text: str, folder: Path) -> str:
    """Take the scratch folder out of a message: results hold no machine's paths."""
    return text.replace(str(folder), "…")


def run(cases: Sequence[Case], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the cases one after the other."""
    device = torch.device(args.device)

    def setup(name: str) -> Setup:
        scratch = folder / name.replace(" ", "-").replace(",", "")
        scratch.mkdir(parents=True)
        return Setup(device, args.model, scratch, args.trl_python)

    first = setup("machine")
    about = apart.run(lambda: machine(first), first.folder, MACHINE_S * patience(first))
    if about.fault:
        raise SystemExit(f"device '{args.device}' cannot be used: {about.fault}; --device cpu runs without a GPU")
    budget = MACHINE_S + sum(case.seconds for case in cases)
    found: dict[str, Any] = {"model": args.model, "budget_s": budget, **about.result, "cases": {}}
    for case in cases:
        found["cases"][case.name] = outcome(case, setup(case.name))
        ended = found["cases"][case.name]
        seconds = f" ({ended['seconds']} s)" if "seconds" in ended else ""
        print(f"{case.name}: {ended['status']}{seconds}", flush=True)
    return found


def main() -> None:
    """Run the kit, and write its JSON and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", choices=list(SIZES), help="default: qwen3-0.6b on a GPU, tiny on a CPU")
    parser.add_argument("--cases", nargs="*", default=names, choices=names, metavar="CASE", help=f"of: {names}")
    parser.add_argument("--trl-python", default="", help="interpreter that has TRL")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file and the page")
    args = parser.parse_args()
    args.model = args.model or ("qwen3-0.6b" if args.device == "cuda" else "tiny")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # runs take the first GPU that they see
    with tempfile.TemporaryDirectory() as folder:
        found = run([case for case in CASES if case.name in args.cases], args, Path(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{args.device}.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    page.write(args.out)
    print(f"{target} and {args.out / page.NAME}")
    failed = [name for name, each in found["cases"].items() if each["status"].startswith(("wrong", "failed"))]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
