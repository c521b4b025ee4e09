"""One update of studies and benchmarks: the call that their hours consist of still goes through.

Models are as small as the tests', warm starts a step or two, and a reward that half of all texts earn stands in for a
task that has to be learned first. Left out: other packages' side of a race (TRL, cvxpy, GGLasso, scikit-learn).
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

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


TINY = {
    "model.path": "tiny",
    "model.settings": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2},
}
HALF = {"task.verifiers": [{"name": "tests.support.rewards:even", "sees": "completion"}]}
WARM = {"warm_start.num_steps": 2, "eval.num_problems": 4, "eval.samples_per_problem": 1, "eval.final_samples": 1}


def test_pmd_arena(script, monkeypatch, tmp_path):
    arms, arena = script("studies/pmd/arms.py"), script("studies/pmd/arena.py")
    monkeypatch.setattr(arms, "NUM_UPDATES", 2)
    monkeypatch.setattr(arena, "NUM_UPDATES", 2)
    sizes = {"task.num_train": 32, "task.num_heldout": 8}
    several = arms.Arm("pmd-mean", {"tau": 0.2}, updates_per_batch=2)
    lagged = [arms.Arm("grpo", lag=1, anchor=anchor) for anchor in ("sampler", "recomputed")]
    with arena.Arena(tmp_path, "low", TINY | HALF | WARM | sizes) as opened:
        for arm in (several, *lagged):
            row = opened.carry_out(arms.Run(arm, 1e-3, seed=0))
            assert row["status"] == "finished"
            assert [check["updates"] for check in row["curve"]][::-1][0] == 2
            assert row["curve"][-1]["heldout"] != row["curve"][0]["heldout"], "the weights have moved"
            assert row["last"]["policy/chi_square"] != 0


def test_transformed_advantages(script, monkeypatch, tmp_path):
    run = script("studies/transformed_advantages/run.py")
    arms, arena = script("studies/pmd/arms.py"), script("studies/pmd/arena.py")
    monkeypatch.setattr(arms, "NUM_UPDATES", 1)
    monkeypatch.setattr(arena, "NUM_UPDATES", 1)
    sizes = {"task.num_train": 32, "task.num_heldout": 8, "model.dtype": "float32"}
    with run.Arena(tmp_path, "low", TINY | HALF | WARM | sizes) as opened:
        rows = [run.carry_out(opened, arm, 0.1, seed=0) for arm in run.ARMS if arm.optimizer == "SGD"]
    assert {row["status"] for row in rows} == {"finished"}
    assert len({row["heldout"] for row in rows}) == len(rows), "each transformation makes another step"


def test_pmd_confirmation(script, monkeypatch, tmp_path):
    from heliostat.research import open_experiment

    confirmation = script("studies/pmd/confirmation.py")
    monkeypatch.setattr(confirmation, "UPDATES_PER_BATCH", 1)
    monkeypatch.setattr(confirmation, "NUM_HELDOUT", 4)
    with open_experiment(confirmation.study_recipe(tmp_path), TINY | HALF) as experiment:
        bout = confirmation.Bout(experiment)
        before = bout.success(experiment.heldout[:4])
        row = bout.carry_out(confirmation.plan()[0] | {"lr": 1e-2})
    assert len(row["phases"]) == confirmation.NUM_PHASES
    assert len(row["heldout"]) == 4
    assert row["heldout"] != before


def test_prefixrl(script, monkeypatch, tmp_path):
    tasks, arena = script("studies/prefixrl/tasks.py"), script("studies/prefixrl/arena.py")
    arms, runs = script("studies/prefixrl/arms.py"), script("studies/prefixrl/runs.py")
    sizes = {"train.num_steps": 1, "task.num_train": 24, "task.num_heldout": 4}
    chain = tasks.Chain("T1", 2, target=0.0, look_every=1, recipe=TINY | HALF | sizes)
    monkeypatch.setitem(tasks.TASKS, "T1", chain)
    monkeypatch.setattr(arena, "NUM_SCREENED", 1)
    monkeypatch.setattr(arena, "CAP", 8)
    monkeypatch.setattr(runs, "NUM_CHECKS", 1)
    with arena.Arena(tmp_path, "T1") as opened:
        assert opened.start["num_hard"] > 0
        for name in ("rl-8", "importance", "luffy", "sft-rl"):
            row = runs.Run(opened, dataclasses.replace(arms.ARMS[name], sft_steps=5), 1e-2, seed=0).carry_out()
            assert row["curve"][-1]["step"] == 1
            assert row["curve"][-1]["train"] != row["curve"][0]["train"], name


def test_prefixrl_smollm2(script, monkeypatch, tmp_path):
    pytest.importorskip("reasoning_gym")
    smollm2 = script("studies/prefixrl/smollm2.py")
    load, store = smollm2.recipe, tmp_path / "results.json"
    quick = {"run.num_threads": 1, "train.num_steps": 1, "train.try_export": False, "rollout.max_new_tokens": 12}
    quick["task.answer_after"] = "e"  # random text has one, with a part before it that a prefix can give
    monkeypatch.setattr(smollm2, "recipe", lambda changes: load(TINY | HALF | quick | changes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--work", str(tmp_path / "work")])
    small = {"MODEL": "tiny", "SOLVED": "", "STORE": store, "ROUND": 8, "CAP": 8, "NUM_SAMPLES": 2}
    small["ARMS"] = {"prefix": smollm2.ARMS["prefix"]}
    for name, value in small.items():
        monkeypatch.setattr(smollm2, name, value)
    smollm2.main()
    results = json.loads(store.read_text())
    assert results["collection"]["attempts"] == 24 * 8
    assert set(results) == {"collection", "start", "prefix"}
    (step,) = results["prefix"]["steps"]
    assert step["prefix/success"] >= 0


def test_optimizers_posttraining(script, tmp_path):
    from heliostat.models import save_model
    from tests.support.nano import make_nano

    posttraining = script("studies/optimizers/posttraining.py")
    recipe = posttraining.start_recipe(tmp_path)
    save_model(make_nano(), tmp_path / "start")
    for name in ("adamw", "sgd"):
        short = posttraining.arm_recipe(recipe, tmp_path / "start", name, 1e-3, seed=0)
        assert short.optimizer.name == name
    probability, greedy = posttraining.success(recipe, tmp_path / "start")
    assert 0 < probability < 1
    assert 0 <= greedy <= 1


def test_lora_against_whole(script, monkeypatch, tmp_path):
    """Runs of three arms on a tiny model, interrupted and resumed, and the tables from the stored rows."""
    pytest.importorskip("peft")
    subjects, study = script("studies/lora/subjects.py"), script("studies/lora/against_whole.py")
    page = script("studies/lora/against_whole_page.py")

    def start(work):
        work.mkdir(parents=True, exist_ok=True)
        subjects.TASKS["T3"].write(work / "chains.jsonl", 12, 0)
        sizes = {"task.path": str(work / "chains.jsonl"), "task.num_train": 8, "task.num_heldout": 4}
        plain = {"warm_start.num_steps": 0, "rollout.group_size": 4, "rollout.prompts_per_step": 2}
        return subjects.load_recipe(str(subjects.HERE / "t3.toml"), TINY | HALF | sizes | plain)

    rates = {"whole": (1e-3,), "lora": (1e-2,)}
    subject = subjects.Subject(start, subjects.success_on_chains, 2, 1, rates, ("whole", "rank 1"))
    monkeypatch.setitem(study.SUBJECTS, "T3", subject)
    monkeypatch.delitem(study.SUBJECTS, "SmolLM2")
    for name, value in {"RESULTS": tmp_path / "rows.jsonl", "MAX_RATES": 1, "SEEDS": (1, 2)}.items():
        monkeypatch.setattr(study, name, value)
    rows = study.stored()
    study.carry_on(rows, itertools.islice(study.plan(rows), 3), "run", tmp_path, math.inf)
    assert [row["arm"] for row in study.stored()] == ["start", "whole", "rank 8", "whole"]
    rows = study.stored()
    study.carry_on(rows, study.plan(rows), "run", tmp_path, math.inf)
    runs = {(row["arm"], row["seed"]): row for row in study.stored() if row["what"] == "run"}
    assert set(runs) == {("whole", 0), ("rank 8", 0), *((arm, seed) for arm in subject.arms for seed in (1, 2))}
    assert all(row["kl"] != 0 and len(row["curve"]) == 2 for row in runs.values()), "the weights have moved"
    assert runs["whole", 1]["trained_bytes"] > runs["rank 1", 1]["trained_bytes"]
    tables = page.success_table(rows) + page.cost_table(rows)
    assert sum("| T3 | rank 1 | 0.01 |" in line for line in tables) == 1
    assert sum(f"| T3 | rank 1 | {runs['rank 1', 1]['trained']:,} |" in line for line in tables) == 1
    with pytest.raises(SystemExit, match="go on with the same --work"):
        study.check_start([row | {"success": 0.9} for row in rows], "T3", start(tmp_path / "T3"))


def test_success_of_lora_at_equal_time(script):
    """Whole weights take 2 s a step and LoRA 1 s, so whole weights are read at half of their steps."""
    pytest.importorskip("peft")
    script("studies/lora/subjects.py"), script("studies/lora/against_whole.py")
    page = script("studies/lora/against_whole_page.py")
    num_steps = page.SUBJECTS["T3"].num_steps

    def row(arm, lr, seed, update_s, *success):
        key = {"what": "run", "subject": "T3", "arm": arm, "lr": lr, "seed": seed, "status": "finished"}
        curve = [[num_steps // 2, success[0]], [num_steps, success[1]]]
        return {**key, "sample_s": 0.0, "update_s": update_s * num_steps, "curve": curve}

    rows = [{"what": "start", "subject": "T3", "arm": "start", "lr": 0.0, "seed": 0, "success": 0.2}]
    for seed in (0, 1, 2):
        rows += [row("whole", 1e-4, seed, 2.0, 0.3, 0.5), row("rank 8", 1e-3, seed, 1.0, 0.3, 0.4 + 0.1 * seed)]
    assert page.at_equal_time(rows, "T3", "rank 8") == {1: (0.5, 0.3), 2: (pytest.approx(0.6), 0.3)}
    (line,) = [line for line in page.success_table(rows) if "rank 8" in line]
    assert "| 0.550 | +0.050 [" in line
    assert "| 0.550, 0.300 | +0.250 [" in line


def test_teacher_against_reward(script, monkeypatch, capsys, tmp_path):
    """Runs of two arms from a tiny student, begun later and resumed, and the tables from the stored rows."""
    study = script("studies/distill/run.py")
    arms = {name: study.ARMS[name] for name in ("reward", "reverse-kl")}
    few = {
        "RESULTS": tmp_path / "rows.jsonl",
        "STARTS": {"rewarded": 2},
        "ARMS": arms,
        "RATES": (1e-3,),
        "SEEDS": (1, 2),
    }
    for name, value in (few | {"MAX_RATES": 1, "BUDGET": 1e6}).items():
        monkeypatch.setattr(study, name, value)
    load, sizes = study.load_recipe, {"task.num_train": 16, "task.num_heldout": 4}
    monkeypatch.setattr(study, "load_recipe", lambda name, own=(): load(name, TINY | WARM | sizes | dict(own)))
    page, success = script("studies/distill/page.py"), study.success

    def nats(experiment):
        """Success of a model this small is 0 to five digits."""
        assert 0 <= success(experiment) < 1
        return float(sum(logp.sum() for logp in experiment.score_solutions(experiment.heldout)))

    monkeypatch.setattr(study, "success", nats)
    study.carry_on(tmp_path, -math.inf)
    assert (study.stored(), capsys.readouterr().out) == ([], "to be continued\n")
    study.carry_on(tmp_path, math.inf)
    rows = study.stored()
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, 0) for arm in arms] + [
        (arm, seed) for seed in (1, 2) for arm in arms
    ]
    assert [row["shares"].get("teacher", 0) > 0 for row in rows] == [False, True] * 3
    assert rows[1]["curve"][0] != rows[1]["curve"][-1], "the teacher has moved the weights"
    study.carry_on(tmp_path, -math.inf)
    assert len(study.stored()) == 6
    (line,) = [line for line in page.table(rows, "rewarded") if line.startswith("| reverse-kl")]
    assert line.split(" | ")[1:4] == ["0.001", "2", "1"]
    assert page.success_at({"status": "finished", "curve": [[0, 0.0, 0.2], [1, 10.0, 0.4]]}, 5.0) == pytest.approx(0.3)
    with pytest.raises(SystemExit, match="go on with the same --work"):
        study.check_start(rows, rows[0] | {"curve": [[0, 0.0, 0.9]]})


def test_guard_answers(script, monkeypatch, tmp_path):
    answers = script("studies/guard/answers.py")
    answers.write_problems(tmp_path / "pairs.jsonl")
    monkeypatch.setattr(answers, "NUM_SAMPLES", answers.K)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "studies/guard"))  # verifier processes import ``pairs``
    measured = answers.measure(answers.make(tmp_path, 0, TINY))
    assert set(measured) == {"reward", "coverage", "effective", "pass@k", "named"}
    assert all(0 <= value <= 1 for value in measured.values())


def test_race_with_trl(script, monkeypatch, capsys, tmp_path):
    """Our side: a whole step in a race, and one on rollouts that TRL has recorded."""
    entries, race = script("benchmarks/race_trl/entries.py"), script("benchmarks/race_trl/race.py")
    sides, agreement = script("benchmarks/race_trl/sides.py"), script("benchmarks/race_trl/agreement.py")
    monkeypatch.setitem(entries.SHAPES, "5M", entries.Shape(32, 64, 2, 2))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks/race_trl"))
    entry = entries.Entry("5M", "short", num_prompts=2, group_size=4)
    _, job = race.job_of("heliostat float32", entry, tmp_path, num_steps=1, seed=0, num_threads=1)
    sides.heliostat_side(job)
    laps = [json.loads(line[4:]) for line in capsys.readouterr().out.splitlines() if line.startswith("LAP ")]
    assert [lap["step"] for lap in laps] == [1]
    assert laps[0]["tokens"] > 0
    record(job, tmp_path)
    (line,) = agreement.replay(job, tmp_path)
    assert line["step"] == 1
    assert line["apart"] == pytest.approx(1, abs=0.2), "recorded weights moved at random, ours by one small step"


def test_race_to_a_success(script, monkeypatch, capsys, tmp_path):
    """Our side: two steps from a model, every second one kept; the time of a result is on the line between two."""
    entries, success = script("benchmarks/race_trl/entries.py"), script("benchmarks/race_trl/success.py")
    sides = script("benchmarks/race_trl/success_sides.py")
    monkeypatch.setitem(entries.SHAPES, "5M", entries.Shape(32, 64, 2, 2))
    model = entries.write_model("5M", tmp_path)
    few = {"rollout.prompts_per_step": 4, "task.num_train": 8, "task.num_heldout": 4, "eval.num_problems": 4}
    job = {"model": str(model), "folder": str(tmp_path / "kept"), "seed": 0, "num_threads": 1, "num_steps": 2}
    sides.heliostat_side(job | {"lr": 1e-4, "dtype": "float32", "own": {"objective.name": "grpo", **few}})
    laps = [json.loads(line[4:]) for line in capsys.readouterr().out.splitlines() if line.startswith("LAP ")]
    assert [lap["step"] for lap in laps] == [1, 2]
    assert (tmp_path / "kept" / "step_000002" / "model.safetensors").exists()
    assert success.check_reward(tmp_path / "kept") > 0

    points = [{"cpu_s": 0.0, "success": 0.4}, {"cpu_s": 10.0, "success": 0.7}, {"cpu_s": 14.0, "success": 0.9}]
    assert success.TARGET == 0.8
    assert success.crossing(points, "cpu_s") == pytest.approx(12)
    assert success.crossing(points[2:], "cpu_s") == 14
    assert success.crossing(points[:2], "cpu_s") is None


def test_race_of_tool_loops(script, monkeypatch, capsys, tmp_path):
    """Our side: episodes of the class that both sides take, and a model taught by its oracle."""
    sides, race = script("benchmarks/agents/tool_sides.py"), script("benchmarks/agents/race_trl.py")
    caller, turns = script("benchmarks/agents/caller.py"), script("benchmarks/agents/turns.py")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    monkeypatch.setattr(turns, "FIVE_MILLION", small)
    caller.untrained_5m("names", tmp_path / "5M-names", seed=0)
    taught = {"environment.name": "caller:Taught", "warm_start.num_steps": 1, "warm_start.batch_size": 2}
    quick = {"audit.enabled": False, "task.num_heldout": 1, "eval.num_problems": 1}
    cell = race.Cell(num_prompts=2, group_size=2, num_steps=0)
    capsys.readouterr()
    sides.heliostat_side(race.job_of(cell, {"settings": taught | quick}, seed=0, work=tmp_path))
    (lap,) = [json.loads(line[4:]) for line in capsys.readouterr().out.splitlines() if line.startswith("LAP ")]
    assert lap["episodes"] == 4
    assert lap["tokens"] >= lap["turns"] >= 4
    assert 0 < lap["rollout_cpu_s"] < lap["cpu_s"]


def test_cards(script):
    """Random bids make episodes of the whole length, and the reward is the share of cards below them."""
    caller, cards = script("benchmarks/agents/caller.py"), script("benchmarks/agents/cards.py")
    taught = caller.Taught()
    taught.reset({"prompt": "card 512", "problem": 3, "card": 512}, seed=0)
    steps = [taught.step(taught.oracle()) for _ in range(cards.NUM_TURNS)]
    assert [step.done for step in steps] == [False] * cards.NUM_CALLS + [True]
    assert steps[-2].observation[0]["content"].startswith("end ")
    for amount, reward in ((1000, 1), (99, 0)):
        table = cards.Cards()
        table.reset(problem=3, card=512)
        answers = [table.bid(amount) for _ in range(cards.NUM_CALLS)]
        assert answers[:-1] == [step.observation[0]["content"] for step in steps[:-2]], "whatever is bid"
        assert table.get_reward() == reward


def test_turns_counted_from_masks(script):
    counted = script("benchmarks/agents/tool_sides.py").count_episodes([[1, 1, 0, 0, 1], [1, 1, 1]])
    assert counted == {"episodes": 2, "tokens": 6, "turns": 3, "environment_tokens": 2}


def record(job, folder):
    """Two of TRL's files: padded rows with their rewards, and weights before and after."""
    from heliostat.config import ModelSection
    from heliostat.models import load_model

    draws = torch.Generator().manual_seed(0)
    start = {name: p.detach() for name, p in load_model(ModelSection(path=job["model"]), 0).model.named_parameters()}
    prompt = torch.randint(10, 200, (2, 6), generator=draws).repeat_interleave(job["group_size"], 0)
    completion = torch.randint(10, 200, (job["num_rows"], 5), generator=draws)
    masks = {"prompt_mask": torch.ones_like(prompt), "completion_mask": torch.ones_like(completion)}
    rewards = torch.tensor([[0.0], [1.0]]).repeat(job["num_rows"] // 2, 1)
    step = {"prompt_ids": prompt, "completion_ids": completion, "rewards": rewards, "weights": start, **masks}
    after = {name: weight.float() + 0.1 * torch.randn(weight.shape, generator=draws) for name, weight in start.items()}
    torch.save(step | {"weights": {name: weight.float() for name, weight in start.items()}}, folder / "0.pt")
    torch.save({"weights": after}, folder / "1.pt")


def test_inverse_decomposition(script, monkeypatch):
    race, curves = (
        script("benchmarks/inverse_decomposition/race.py"),
        script("benchmarks/inverse_decomposition/curves.py"),
    )
    monkeypatch.setitem(race.REPEATS, "heliostat", 1)
    record = race.measure("heliostat", 10, seed=0)
    assert record["kkt_residual"] < 1e-8
    for name, path in curves.PATHS.items():
        assert path.prepare(path.sizes[0])() is not None, name


def test_covariance_refit(script, monkeypatch):
    run = script("studies/covariance_refit/run.py")

    def graphical_lasso(empirical, penalty, max_iter):  # scikit-learn's place: some pattern, and an estimate on it
        precision = np.linalg.inv(empirical)
        return None, np.where(np.abs(precision) > penalty, precision, 0.0)

    for name in ("sklearn", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(graphical_lasso=graphical_lasso))
    row = run.trial(12, 0.5, seed=0)
    assert row["residual"] < 1e-6
    assert row["num_edges"] > 0
    assert 0 < row["oracle_kl"] < row["refit_kl"]


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


def test_a_wreck_of_the_samplers_temperature(monkeypatch):
    from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
    from tests.support.nano import make_nano, make_prompts

    monkeypatch.syspath_prepend(str(ROOT))
    faults = importlib.import_module("studies.wrecks.faults")
    loaded = make_nano()
    engine = TorchEngine(loaded, DecodeLimits(4))

    def sampled(temperature):
        settings = SamplingSettings(temperature=temperature)
        groups = engine.sample(SampleRequest(make_prompts(loaded, 2), 4, settings, seed=0, policy_step=0))
        return [completion.token_ids for group in groups for completion in group.completions]

    cold, usual, clock = sampled(0.1), sampled(1.0), faults.Clock((0, 1))
    with contextlib.ExitStack() as stack:
        faults.other_temperature(0.1)(clock, stack)
        assert sampled(1.0) == usual, "outside a training step"
        clock.in_step = True
        assert sampled(1.0) == cold != usual


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
