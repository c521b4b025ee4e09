"""A run that teaches nothing says so: on screen, in its folder and summary, on its page, and to ``diagnose``."""

import json
from pathlib import Path

import pytest

from heliostat.api import post_train
from heliostat.config import load_recipe
from heliostat.report.diagnosis import diagnose
from tests.support import small

QUICK = {"warm_start.num_steps": 0, "train.num_steps": 3, "eval.every": 0, "eval.final_samples": 1,
         "audit.enabled": False, "train.try_export": False}  # fmt: skip


def fails(completions, **columns):
    """A reward that is broken."""
    raise RuntimeError("the reward service is down")


def full(completions, **columns):
    """A reward that pays anything."""
    return [1.0] * len(completions)


def recipe(folder: Path, verifier: str = "numeric", limit: int = 40) -> Path:
    path = small.write_recipe(folder)
    text = path.read_text().replace("max_new_tokens = 4", f"max_new_tokens = {limit}")
    path.write_text(text.replace('{name = "numeric"}', f'{{name = "{verifier}"}}'))
    return path


def outright(folder: Path) -> list[dict[str, object]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event.get("statistic_name") == "outright"]


def test_a_run_without_a_success_says_so_everywhere(tmp_path):
    folder = tmp_path / "run"
    words = [word for key, value in QUICK.items() for word in (f"--{key}", str(value).lower())]
    ran = small.run("train", recipe(tmp_path), "--run", folder, *words)
    assert ran.returncode == 0, ran.stderr
    first = outright(folder)[0]
    assert first["rule"] == "nothing-solved"
    assert first["text"].startswith("before training: none of the 20 held-out problems")
    assert "warm_start.num_steps = 200" in first["text"]
    screen = " ".join(ran.stdout.split())
    assert screen.count(" ".join(first["text"].split())) == 2, "once as it is seen, and once in the last lines"
    assert json.loads((folder / "summary.json").read_text())["findings"][0] == first["text"]
    page = (folder / "report.html").read_text()
    assert page.index(first["meaning"]) < page.index('class="verdict')
    (folder / "events.jsonl").unlink()
    found = diagnose(folder)
    assert found.findings[0].rule == "nothing-solved", "numbers alone say it as well"
    assert "Nothing was solved from the start" in found.headline
    (folder / "evals.jsonl").unlink()
    assert diagnose(folder).findings[0].rule == "nothing-solved", "and so do the training steps alone"


CASES = {
    "nothing-solved": ("numeric", "warm_start.num_steps = 200"),
    "everything-solved": (f"{__name__}:full", "harder problems"),
    "verifier-fails": (f"{__name__}:fails", "the reward service is down"),
}


@pytest.mark.parametrize("rule", CASES)
def test_where_the_guard_is_off_too(tmp_path, rule):
    verifier, words = CASES[rule]
    result = post_train(
        load_recipe(str(recipe(tmp_path, verifier)), QUICK | {"guard.mode": "off"}), run_dir=tmp_path / "run"
    )
    found = outright(result.folder)
    assert found[0]["rule"] == rule
    assert [event["rule"] for event in found].count(rule) == 1, "the steps confirm it, and do not say it again"
    assert words in found[0]["text"]
    assert result.findings[0] == found[0]["text"]
    assert {event["action"] for event in found} == {"note"}
    assert diagnose(result.folder).findings[0].rule == rule
