"""Theory and trainer side by side: how far an update phase goes towards the exact step, update by update.

    OMP_NUM_THREADS=1 python studies/pmd/bridge.py    # two CPU minutes; bridge.json with its plot, measured.jsonl
    python studies/pmd/bridge.py --only-draw
    heliostat theory plot docs/images/theory --measured studies/pmd/measured.jsonl

A transformer that can say thirteen things, a batch that is its whole population, and the trainer's own update phase:
the model of tests/reference/enumerable.py, where the tests hold the end of this curve to the exact solution.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IMAGES = HERE.parents[1] / "docs" / "images" / "pmd-study"
TAUS, COUNTS, LR = (0.05, 0.2, 1.0), (1, 2, 4, 8, 16, 32, 64, 128, 256), 3e-3
FINISHED = 256  # updates after which a phase is over at every temperature


Rule = Callable[[tuple[int, ...]], bool]


def phase(tau: float, num_updates: int, right: Rule | None = None) -> tuple[dict[str, float], Any]:
    """The trainer's numbers after an update phase on the whole population, and the exact step.

    Args:
        right: which answers are right; by default those that the prompt asks for.
    """
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "reference"))
    import torch
    from enumerable import ANSWERS, answer_log_probs, ask, enumerable_model, population, reward

    from heliostat import theory
    from heliostat.config import ObjectiveSection
    from heliostat.objectives import build_objective
    from heliostat.optim import Schedule
    from heliostat.train.distributed.ranks import Runtime
    from heliostat.train.logprobs.policy import Policy
    from heliostat.train.update.mirror_metrics import mirror_means, rollout_means, sequence_log_ratios
    from heliostat.train.update.safe_step import SafeStep
    from heliostat.train.update.updater import Updater, make_batch
    from heliostat.types import Batch, Verdict, mean_values

    torch.set_num_threads(1)
    prompt, loaded = ask(2), enumerable_model()
    old = torch.stack([logp.sum().detach() for logp in answer_log_probs(loaded, prompt)])
    is_right = right or (lambda answer: reward(prompt, answer) == 1.0)
    updater = Updater(
        policy=Policy(loaded, 1.0, shared_prompt=True),
        objective=build_objective(ObjectiveSection(name="pmd-mean", tau=tau)),
        safe_step=SafeStep(torch.optim.Adam(loaded.model.parameters(), lr=LR), 1e9, 1),
        schedule=Schedule(LR, num_updates, "constant"),
        runtime=Runtime(torch.device("cpu")),
        tokens_per_microbatch=100_000,
        drop_zero_signal=False,
        anchor_from_sampler=True,
    )
    group = population(loaded, prompt)
    verdicts = [Verdict(float(is_right(c.token_ids)), is_right(c.token_ids)) for c in group.completions]
    batch = make_batch(updater.objective, [replace(group, verdicts=tuple(verdicts))])
    updater.run(Batch(batch.groups * num_updates), num_updates, first_update=0, seed=0)
    often = Batch(batch.groups * 16)  # the same distribution; among 16 rollouts alone a gain counts as noise
    means = mirror_means(*sequence_log_ratios(updater.policy, often, 16, 100_000, updater.runtime), tau=tau)
    means |= rollout_means([group.group for group in batch.groups])
    exact = theory.pmd_mean(None, [float(is_right(answer)) for answer in ANSWERS], tau, log_probs=old)
    return mean_values(means), exact


def against_updates() -> list[dict[str, Any]]:
    """How far a phase of k updates goes, at p = 1/4."""
    found = []
    for tau in TAUS:
        for count in COUNTS:
            numbers, exact = phase(tau, count)
            found.append(
                {
                    "tau": tau,
                    "updates": count,
                    "trainer": {key.partition("/")[2]: numbers[key] for key in numbers if key.startswith("policy/")},
                    "exact": {
                        "lambda_hat": float(exact.lam),
                        "chi_square": float(exact.chi_square),
                        "log_ratio_correct": float(exact.log_ratio.max()),
                        "log_ratio_incorrect": float(exact.log_ratio.min()),
                    },
                }
            )
    return found


def against_success() -> list[dict[str, float]]:
    """Where finished phases end, for questions from hard to easy, as lines that ``heliostat theory plot`` reads."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "reference"))
    from enumerable import sum_of

    rules: tuple[Rule, ...] = (
        lambda answer: sum_of(answer) >= 4,  # 1 of 16
        lambda answer: sum_of(answer) == 0,  # 2
        lambda answer: sum_of(answer) >= 3,  # 3
        lambda answer: 0 <= sum_of(answer) <= 1,  # 5
        lambda answer: sum_of(answer) >= 2,  # 7
        lambda answer: 0 <= sum_of(answer) <= 2,  # 9
        lambda answer: sum_of(answer) >= 0,  # 12: any digit at all
    )
    return [{"objective.tau": tau} | phase(tau, FINISHED, rule)[0] for tau in TAUS for rule in rules]


def draw(found: list[dict[str, Any]]) -> None:
    """λ̂ and both classes' log-ratios against the number of updates, with the exact step as a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heliostat"
    from matplotlib import pyplot

    panels = {
        "lambda_hat": "λ̂ (nats)",
        "log_ratio_correct": "s of correct answers",
        "log_ratio_incorrect": "s of wrong ones",
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for tau, colour in zip(TAUS, ("#c9772b", "#2f9470", "#4a84cf"), strict=True):
            rows = [row for row in found if row["tau"] == tau]
            axis.plot(
                [r["updates"] for r in rows],
                [r["trainer"][key] for r in rows],
                ".-",
                color=colour,
                label=f"τ = {tau:g}",
            )
            axis.axhline(rows[0]["exact"][key], color=colour, linestyle=":")
        axis.set(xscale="log", xlabel="updates on one batch", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, title="dotted: exact")
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "bridge.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-draw", action="store_true", help="only the plot again, from bridge.json")
    if not parser.parse_args().only_draw:
        (HERE / "bridge.json").write_text(json.dumps(against_updates(), indent=1) + "\n")
        (HERE / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in against_success()))
    draw(json.loads((HERE / "bridge.json").read_text()))
