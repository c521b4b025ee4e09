"""``heliostat doctor``: what is broken is said with its way out, and nothing secret is."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from heliostat.cli import machine, main

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


def install(site: Path, name: str, version: str, *fields: str) -> None:
    """Write the metadata of a package, as pip does."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *fields]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages in front of the installed ones, with a small torch; the work happens elsewhere."""
    work = tmp_path / "a b"
    work.mkdir()
    monkeypatch.chdir(work)
    folder = tmp_path / "site"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open\\n shared object')\n")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def look(capsys):
    """Run ``heliostat doctor --json``; return its exit code and its findings by name."""

    def run() -> tuple[int, dict[str, dict]]:
        code = main(["doctor", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["healthy"] == (not found["broken"]) == (code == 0)
        findings = [one for section in ("packages", "machine", "extras") for one in found.get(section, [])]
        assert {one["name"] for one in findings if one["state"] == "broken"} == set(found["broken"])
        return code, {one["name"]: one for one in findings}

    return run


def test_a_working_installation_passes_and_hides_its_token(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "everything that is needed works" in printed
    assert "hub token        present" in printed
    monkeypatch.setattr(machine, "torch_and_gpus", list)  # it takes seconds, and was looked at above
    assert main(["doctor", "--json"]) == 0
    found = capsys.readouterr().out
    assert not any(TOKEN[start : start + 8] in printed + found for start in range(3, len(TOKEN) - 8))
    names = {one["name"]: one["values"] for section in ("packages", "machine") for one in json.loads(found)[section]}
    assert names["torch"]["version"] == metadata.version("torch")
    assert names["cores"]["usable"] == len(os.sched_getaffinity(0))
    assert names["disk"]["folder"] == str(tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_a_package_outside_its_range_and_a_torch_that_does_not_load_are_broken(site, look, capsys):
    install(site, "rich", "12.9")
    code, found = look()
    assert code == 1
    assert (found["rich"]["state"], found["rich"]["way_out"]) == ("broken", "pip install 'rich>=13'")
    assert "shared object" in found["import torch"]["text"]
    assert found["torch"]["state"] == "ok"
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert "  broken   rich             12.9 is outside >=13: pip install 'rich>=13'" in lines
    assert lines[-1] == "broken: rich, import torch"


def test_missing_packages_and_incomplete_extras_name_what_installs_them(site, look):
    needs = ["torch", "nowhere>=2", "middle", "absent; python_version < '3'", "part-a; extra == 'one'"]
    needs += ["heliostat[one]; extra == 'two'", "middle>=7; extra == 'two'", "middle; extra == 'three'"]
    fields = ["Requires-Python: >=99", *(f"Requires-Dist: {need}" for need in needs)]
    install(site, "heliostat", "9", *fields, *(f"Provides-Extra: {extra}" for extra in ("one", "two", "three")))
    install(site, "middle", "5", "Requires-Dist: deep", "Requires-Dist: numpy<1")
    _, found = look()
    broken = {name: one["way_out"] for name, one in found.items() if one["state"] == "broken"}
    del broken["Python"], broken["import torch"]
    assert broken == {
        "nowhere": "pip install 'nowhere>=2'",
        "middle": "pip install --force-reinstall 'middle'",
        "deep": "pip install 'deep'",
    }
    assert found["numpy"]["state"] == "warning"
    assert "middle asks for" in found["numpy"]["text"]
    assert found["heliostat"]["state"] == "warning"
    assert found["three"]["text"] == "complete"
    assert (found["one"]["text"], found["one"]["state"]) == ("without part-a", "absent")
    assert found["two"]["text"] == "middle 5 is outside >=7; without part-a"
    assert found["two"]["way_out"] == "pip install 'heliostat[two]'"
    assert "absent" not in found


@pytest.mark.parametrize(
    ("files", "quota", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/b/memory.max": "4096\n",
                "sys/fs/cgroup/memory.max": "max\n",
            },
            0.5,
            4096,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "8192\n",
            },
            1.5,
            8192,
        ),
    ],
    ids=["no limit", "version 2, limits at two levels", "version 1, seen from a container"],
)
def test_limits_of_control_groups(tmp_path, files, quota, limit):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.cpu_quota(tmp_path) == quota
    assert machine.memory_limit(tmp_path) == limit
    assert machine.memory(tmp_path).values["limit_bytes"] == limit
    cores = machine.cores(tmp_path)
    assert (cores.state == "warning") == (quota is not None and quota < cores.values["usable"])


def test_units_for_bfloat16(tmp_path):
    (tmp_path / "proc").mkdir()
    for line, units in (
        ("flags : fma avx512_bf16 amx_bf16", ["avx512_bf16", "amx_bf16"]),
        ("Features : bf16", ["bf16"]),
    ):
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\n{line}\nbugs : avx512_bf16\n")
        assert machine.bfloat16(tmp_path).values["units"] == units


def test_it_runs_where_the_packages_of_other_commands_are_gone(site):
    gone = ("packaging", "pydantic", "rich", "numpy", "huggingface_hub")
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
sys.modules.update(dict.fromkeys({gone}))
from heliostat.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "no version can be compared: pip install packaging" in done.stdout
    assert done.stdout.splitlines()[-1] == "broken: packaging, import torch, hub"


def test_a_file_in_place_of_the_runs_is_broken(tmp_path):
    (tmp_path / "runs").write_text("")
    found = machine.disk(tmp_path / "runs")
    assert found.state == "broken"
    assert "--run" in found.way_out
