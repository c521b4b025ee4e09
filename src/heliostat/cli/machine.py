"""The machine that commands would run on: cores, memory, number formats, GPUs, disk, a port, the hub's files.

Left out: packages (``installation``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from heliostat.cli.health_line import HealthLine

GIB = 1 << 30
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
LITTLE_DISK, NO_DISK = 2 * GIB, GIB // 16
PROBE_TIMEOUT_S = 300
PROBE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import torch
found = {"build": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
found["mps"] = torch.backends.mps.is_available()
devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
properties = [torch.cuda.get_device_properties(device) for device in devices]
found["gpus"] = [{"name": one.name, "bytes": one.total_memory} for one in properties]
print(json.dumps(found))
"""


def cores(root: Path = Path("/")) -> HealthLine:
    """Count the cores that this process may use, by its affinity and by the quota of its control group."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = cpu_quota(root)
    values = {"total": total, "usable": usable, "quota": quota}
    text = f"{usable} of {total}"
    if quota is None or quota >= usable:
        return HealthLine("cores", text, values=values)
    text += f", but the control group gives {quota:g} cores' time"
    return HealthLine("cores", text, "warning", f"--run.num_threads {max(1, int(quota))}", values)


def memory(root: Path = Path("/")) -> HealthLine:
    """Report the memory of the machine, the part that is available, and the limit of the control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _available(root)
    limit = memory_limit(root)
    limit = None if limit is None or limit >= total else limit
    text = f"{total / GIB:.1f} GiB"
    text += "" if available is None else f", {available / GIB:.1f} GiB available"
    text += "" if limit is None else f", at most {limit / GIB:.1f} GiB by the control group"
    return HealthLine("memory", text, values={"bytes": total, "available_bytes": available, "limit_bytes": limit})


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of this process's control groups, in cores; ``None``: no limit."""
    quotas = []
    for folder in _control_groups(root, "cpu"):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words):  # "max" and -1 stand for no limit
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of this process's control groups, in bytes; ``None``: no limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [_text(folder / name).strip() for folder in _control_groups(root, "memory") for name in names]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _control_groups(root: Path, controller: str) -> list[Path]:
    """List the folders that may limit this process, version 1 and 2, from its own group up to the mount point."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = Path(path.lstrip("/"))
        folders += [mount / part for part in (own, *own.parents)]
    return folders


def _text(path: Path) -> str:
    """Read a file of the kernel; empty where the system has none, or keeps it to itself."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _available(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def bfloat16(root: Path = Path("/")) -> HealthLine:
    """Report the processor's units for bfloat16 matrices."""
    text = _text(root / "proc/cpuinfo")
    if not text:
        return HealthLine("bfloat16", "unknown, this system has no /proc/cpuinfo", "absent", values={"units": None})
    lines = (line.partition(":") for line in text.splitlines())
    flags = {flag for name, _, rest in lines if name.strip() in ("flags", "Features") for flag in rest.split()}
    units = [flag for flag in BFLOAT16_FLAGS if flag in flags]
    values = {"units": units}
    if units:
        return HealthLine("bfloat16", ", ".join(units), values=values)
    return HealthLine(
        "bfloat16", "no units, so it is much slower than float32 on this processor", "absent", values=values
    )


def torch_and_gpus() -> list[HealthLine]:
    """Import torch in a process of its own, so that one that crashes is a line too, and list its devices."""
    command = [sys.executable, "-c", PROBE, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        text = f"had not loaded after {PROBE_TIMEOUT_S} s"
        return [HealthLine("import torch", text, "broken", "look at python -X importtime -c 'import torch'")]
    if done.returncode:
        code = done.returncode
        end = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        last = (done.stderr.strip().splitlines() or [end])[-1]
        return [HealthLine("import torch", f"fails ({last})", "broken", "pip install --force-reinstall torch")]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    build = "CUDA " + found["cuda"] if found["cuda"] else "ROCm " + found["hip"] if found["hip"] else "the CPU"
    loads = HealthLine("import torch", f"{found['build']} loads, built for {build}", values={"build": found["build"]})
    return [loads, _gpus(found)]


def _gpus(found: dict[str, Any]) -> HealthLine:
    gpus = found["gpus"]
    values = {"count": len(gpus), "devices": gpus, "mps": found["mps"]}
    if gpus:
        names = ", ".join(f"{gpu['name']} with {gpu['bytes'] / GIB:.0f} GiB" for gpu in gpus)
        return HealthLine("GPUs", f"{len(gpus)}: {names}", values=values)
    if found["mps"]:
        return HealthLine(
            "GPUs", "Apple's (MPS), which Heliostat does not use and never ran on", "absent", values=values
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and Path("/proc/driver/nvidia/version").exists():
        cause = "torch is built without CUDA" if not found["cuda"] else "torch cannot use it"
        way_out = "install the torch of https://pytorch.org/get-started for this driver"
        return HealthLine("GPUs", f"an NVIDIA driver is here, but {cause}", "warning", way_out, values)
    return HealthLine("GPUs", "hidden by CUDA_VISIBLE_DEVICES" if hidden else "none", "absent", values=values)


def disk(folder: Path) -> HealthLine:
    """Check that run folders can be made in ``folder``, and how much they may hold."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    other = "choose another folder with --run or --run.root"
    values: dict[str, Any] = {"folder": str(folder.absolute()), "free_bytes": None}
    if not there.is_dir():
        return HealthLine("disk", f"{there} is not a folder, so that no run can write there", "broken", other, values)
    free = values["free_bytes"] = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK):
        return HealthLine("disk", f"{there} cannot be written to", "broken", other, values)
    text = f"{free / GIB:.1f} GiB free for {folder.absolute()}"
    if free < LITTLE_DISK:
        return HealthLine("disk", text, "broken" if free < NO_DISK else "warning", f"free some, or {other}", values)
    return HealthLine("disk", text, values=values)


def port() -> HealthLine:
    """Check that this process may listen on the loopback interface, as several ranks do."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            number = listener.getsockname()[1]
    except OSError as error:
        text = f"127.0.0.1 refuses to listen ({(error.strerror or type(error).__name__).lower()})"
        return HealthLine("loopback", text, "warning", "run on one rank, or let this user open sockets")
    return HealthLine("loopback", f"port {number} is free", values={"port": number})


def hub() -> list[HealthLine]:
    """Report the cache of the Hugging Face hub, and whether there is a token, which is never shown."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        return [HealthLine("hub", f"huggingface_hub does not load ({error})", "broken", "pip install huggingface_hub")]
    folder = Path(constants.HF_HUB_CACHE)
    num_models, num_data = (len(list(folder.glob(f"{kind}--*"))) for kind in ("models", "datasets"))
    offline = bool(constants.HF_HUB_OFFLINE)
    values = {"folder": str(folder), "models": num_models, "datasets": num_data, "offline": offline}
    text = f"{num_models} models and {num_data} data sets in {folder}" if folder.is_dir() else f"no folder {folder} yet"
    cache = HealthLine("hub cache", text + (", HF_HUB_OFFLINE is set" if offline else ""), values=values)
    present = get_token() is not None
    text = "present" if present else "none, which only private and gated repositories need"
    way_out = "" if present else "hf auth login, or HF_TOKEN"
    return [cache, HealthLine("hub token", text, "ok" if present else "absent", way_out, {"present": present})]
