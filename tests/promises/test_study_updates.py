"""One update of studies and benchmarks: the call that their hours consist of still goes through.

Left out: those that need another package's environment (``benchmarks/race_trl``, ``benchmarks/inverse_decomposition``),
a download (SmolLM2, mnist1d) or a warm start of minutes (``studies/pmd/arena.py``, ``studies/prefixrl/runs.py``).
"""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def script(monkeypatch):
    """Import a script by its path, with its folder in front as when it is run; other folders' names are forgotten."""
    before = set(sys.modules)

    def load(path):
        folder = (ROOT / path).parent
        monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module(Path(path).stem)

    yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith((str(ROOT / "studies"), str(ROOT / "benchmarks"))):
            del sys.modules[name]


def test_pmd_bridge(script):
    numbers, exact = script("studies/pmd/bridge.py").phase(tau=0.2, num_updates=1)
    assert 0 < numbers["policy/chi_square"] < float(exact.chi_square)


def test_finance(script):
    market = script("studies/finance/market.py")
    covariance = market.market_covariance(6, 0.75, 1.0)
    for information in market.information_sets(6, 2):
        assert math.isfinite(market.best_strategy(covariance, information, 6).certainty_equivalent)


def test_stability(script, monkeypatch):
    run = script("studies/stability/run.py")
    monkeypatch.setattr(run, "NUM_STEPS", 1)
    family, size = next((family, size) for size in run.SIZES for family in run.SIZES[size])
    row = run.one(family, size, next(iter(run.ARMS)), seed=0)
    assert len(row["norm"]) == 2
    assert row["parameters"] > 0


def test_optimizers(script):
    tasks, contenders = script("studies/optimizers/tasks.py"), script("studies/optimizers/contenders.py")
    inputs = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] * 10)
    parts = tasks.split(inputs, inputs.sum(1) == 1, num_test=8)
    task = tasks.Task("xor", *parts, make=two_layers, num_steps=1, batch_size=4)
    for name, (centre, make) in contenders.CONTENDERS.items():
        model = task.model(seed=0)
        try:
            optimizer = make(model, centre)
        except ModuleNotFoundError:  # a rival's package
            continue
        assert math.isfinite(contenders.train_step(optimizer, model, *task.batch(0, 0))), name


def two_layers():
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def test_wrecks(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    run, cases = (importlib.import_module(f"studies.wrecks.{name}") for name in ("run", "cases"))
    for name, case in {**cases.WRECKS, **cases.HEALTHY}.items():
        (tmp_path / name).mkdir()
        assert run.recipe_of(case, tmp_path / name).train.num_steps > 0


def test_optimizer_race(script, monkeypatch):
    race = script("benchmarks/optim/race.py")
    monkeypatch.setattr(race, "WIDTH", 16)
    monkeypatch.setattr(race, "LAYERS", 1)
    for name, make in race.OURS.items():
        model = race.Transformer()
        spent, extra = race.Contender(model, make(model)).step(torch.randint(0, race.VOCAB, (2, race.LENGTH + 1)))
        assert spent >= 0, name
        assert extra >= 0, name


def test_master_weights(script, monkeypatch):
    bundle = script("benchmarks/optim/master_weights.py")
    monkeypatch.setattr(bundle, "SHAPES", [(3, 2), (2,)])
    for wide in (False, True):
        optimizer = bundle.optimizer_of(torch.bfloat16, wide)
        before = [parameter.clone() for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.step()
        after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert len(before) == len(after) == 2


def test_shared_prefixes(script):
    from heliostat.train.logprobs.policy import Policy
    from tests.support.nano import make_nano

    sharing, loaded = script("benchmarks/prefixrl/sharing.py"), make_nano()
    batch = sharing.rows(loaded, 1, prefix=4, continuation=3)
    gradients = [sharing.step_s(Policy(loaded, 1.0, shared), batch)[1] for shared in (True, False)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4)


def test_scaling(script, tmp_path, monkeypatch):
    from heliostat.train.trainer import Trainer

    measure = script("benchmarks/scaling/measure.py")
    monkeypatch.setattr(Trainer, "step", Trainer.step)  # put back afterwards: the script replaces it
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "recipe.toml").write_text(measure.RECIPE.format(folder=tmp_path))
    sums = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (tmp_path / "digits.py").write_text(
        "def score(completions, **columns):\n"
        "    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]\n"
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    measure.work(tmp_path, {"train.num_steps": measure.COUNTED, "model.settings": small, "task.timeout_s": 60})
    counted = json.loads((tmp_path / "rank0.json").read_text())[-1]
    assert counted["flops"] > 0


def test_guard_cost(script, monkeypatch, capsys, tmp_path):
    from heliostat.train.trainer import Trainer
    from tests.support import small

    cost = script("benchmarks/guard/cost.py")
    monkeypatch.setattr(Trainer, "step", Trainer.step)
    for cls, name in cost.WATCHED:
        monkeypatch.setattr(cls, name, getattr(cls, name))
    monkeypatch.setattr(sys, "argv", ["cost.py", str(small.write_recipe(tmp_path)), "--steps", "3"])
    cost.main()
    assert "CPU seconds" in capsys.readouterr().out
