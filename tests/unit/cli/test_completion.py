"""The printed scripts complete in real shells, in a folder whose names have spaces."""

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("shtab")

DRIVER = """
source "$1"
complete -p heliostat
while IFS= read -r line; do
  IFS='|' read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *'|' ]] && COMP_WORDS+=('')
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  _shtab_heliostat
  (IFS='|'; echo "${COMPREPLY[*]}")
done
"""
CASES = {
    "heliostat|tr": {"train", "traces"},
    "heliostat|tasks|": {"list", "show", "audit"},
    "heliostat|train|m": {"minimal", "mine.toml", "my runs"},
    "heliostat|recipes|smollm2-a": {"smollm2-agent", "smollm2-arithmetic"},
    "heliostat|train|demo|--optimizer.l": {"--optimizer.lr"},
    "heliostat|train|demo|--distributed.placement|": {"replicated", "sharded"},
    "heliostat|train|demo|--run|": {"my runs"},
    "heliostat|report|my\\ r": {"my runs"},
    "heliostat|init|my\\ d": {"my data.jsonl"},
    "heliostat|tasks|audit|x|--opt": set(),
}


def script(shell, folder):
    """The file of the script of ``shell``, printed by the command itself."""
    printed = subprocess.run(
        [sys.executable, "-m", "heliostat", "completion", shell], capture_output=True, text=True, timeout=60, check=True
    )
    path = folder / f"heliostat.{shell}"
    path.write_text(printed.stdout)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my runs").mkdir()
    for name in ("mine.toml", "my data.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


def test_bash_completes(folder, tmp_path_factory):
    path = script("bash", tmp_path_factory.mktemp("script"))
    command = ["bash", "-c", DRIVER, "bash", str(path)]
    lines = "".join(f"{words}\n" for words in CASES)
    done = subprocess.run(command, input=lines, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    registered, *answers = done.stdout.split("\n")[:-1]
    assert registered.endswith("-F _shtab_heliostat heliostat")
    assert done.stderr == ""
    found = {words: set(filter(None, answer.split("|"))) for words, answer in zip(CASES, answers, strict=True)}
    assert found == CASES


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(folder, tmp_path_factory):
    path = script("fish", tmp_path_factory.mktemp("script"))
    command = ["fish", "-c", f"source '{path}'; complete -C 'heliostat train m'"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} >= {"minimal", "mine.toml", "my runs/"}


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_loads_the_script_as_a_completion_function(folder, tmp_path_factory):
    path = script("zsh", tmp_path_factory.mktemp("script"))
    path.rename(path.with_name("_heliostat"))
    load = f"fpath=('{path.parent}' $fpath); autoload -Uz compinit; compinit -u -D; echo $_comps[heliostat]"
    done = subprocess.run(["zsh", "-fc", load], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "_heliostat\n"
    subprocess.run(["zsh", "-n", str(path.with_name("_heliostat"))], timeout=60, check=True)
