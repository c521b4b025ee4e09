"""Counting in threads, and the processes that are forked after it."""

import subprocess
import sys

import pytest

COUNTED_THEN_FORKED = """
import os, signal, sys
from heliostat.config import ModelSection
from heliostat.models import load_model
from heliostat.models.prompts.token_counts import solution_sizes

loaded = load_model(ModelSection(path="tiny"), 0)
assert min(solution_sizes(loaded, ["é 12 + " * 40] * 64, [1] * 64)) > 40
before = os.environ.get("TOKENIZERS_PARALLELISM")
child = os.fork()
if child == 0:
    signal.alarm(60)
    found = loaded.tokenizer(["é 12 + " * 40] * 64, add_special_tokens=False)["input_ids"]
    os._exit(0 if len(found) == 64 and os.environ["TOKENIZERS_PARALLELISM"] == "false" else 3)
assert os.environ.get("TOKENIZERS_PARALLELISM") == before is None
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_process_forked_after_counting_tokenizes_without_hanging_and_the_environment_is_left_alone(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    done = subprocess.run([sys.executable, "-c", COUNTED_THEN_FORKED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "forked" not in done.stderr
