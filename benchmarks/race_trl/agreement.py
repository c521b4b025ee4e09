"""Do both sides turn the same rollouts into the same weights? Then only random numbers tell them apart.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/agreement.py --trl-python PYTHON

TRL trains the 5M model on short prompts for a few steps and writes down what it sampled, the rewards, and its weights
before and after each step. Our side starts from the same files, is given those rollouts and makes the same steps.
Printed for each: how far the weights lie apart, as a share of how far TRL's have moved since the start; and whether TRL
samples from the model as it is: the mean over sampled tokens of surprise minus entropy, then 0 within its error.

Left out: the samplers' random streams (``learning`` compares what comes of both, with them).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from entries import Entry
from race import RESULTS, arguments, job_of, run_python
from sides import heliostat_recipe, trl_side

if TYPE_CHECKING:
    from heliostat.types import Group

Weights = Mapping[str, torch.Tensor]

ENTRY = Entry("5M", "short")
NAME = "agreement.jsonl"


def record(job: dict[str, Any], target: Path) -> None:
    """TRL's side: every step's rollouts and the weights it began with, then the last weights."""
    import trl

    trainers = []

    class Recording(trl.GRPOTrainer):  # type: ignore[misc]
        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            self.rewards = super()._calculate_rewards(*args, **kwargs)
            return self.rewards

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            output = super()._generate_and_score_completions(inputs)
            parts = [f"{key}_{part}" for key in ("prompt", "completion") for part in ("ids", "mask")]
            kept = {part: output[part] for part in parts}
            torch.save({**kept, "rewards": self.rewards, "weights": weights}, target / f"{self.state.global_step}.pt")
            trainers.append(self)
            return output

    trl.GRPOTrainer = Recording
    trl_side(job)
    weights = {name: weight.detach().clone() for name, weight in trainers[-1].model.named_parameters()}
    torch.save({"weights": weights}, target / f"{job['num_steps']}.pt")


def replay(job: Mapping[str, Any], recorded: Path) -> list[dict[str, float]]:
    """Train our side on the recorded rollouts through the library's own updater; return a line for each step."""
    from heliostat.research import open_experiment

    steps = [torch.load(recorded / f"{step}.pt") for step in range(job["num_steps"] + 1)]
    start: Weights = steps[0]["weights"]
    lines = []
    with open_experiment(heliostat_recipe(job)) as experiment:
        model = experiment.loaded.model
        ours = dict(model.named_parameters())
        for index, (step, following) in enumerate(itertools.pairwise(steps)):
            excess, error = surprise_minus_entropy(model, step)
            experiment.step(groups_of(step, job["group_size"]), seed=index)
            moved, apart = distance(following["weights"], start), distance(following["weights"], ours)
            lines.append({"step": index + 1, "apart": apart / moved, "excess_nats": excess, "excess_error_nats": error})
    return lines


def distance(one: Weights, two: Weights) -> float:
    """Euclidean, over all weights of ``one``."""
    return float(sum((one[name] - two[name].detach()).double().square().sum() for name in one) ** 0.5)


def groups_of(step: Mapping[str, torch.Tensor], group_size: int) -> list[Group]:
    """TRL's padded rows as groups with verdicts."""
    from heliostat.types import Completion, Group, Problem, Prompt, StopReason, Verdict

    def row(index: int) -> tuple[tuple[int, ...], Completion, Verdict]:
        ids = {part: step[f"{part}_ids"][index][step[f"{part}_mask"][index] > 0] for part in ("prompt", "completion")}
        unknown = np.zeros(len(ids["completion"]), np.float32)  # the sampler's numbers are not used by one update
        completion = Completion(tuple(ids["completion"].tolist()), unknown, unknown, StopReason.EOS, "")
        reward = float(step["rewards"][index].sum())
        return tuple(ids["prompt"].tolist()), completion, Verdict(reward, reward == 1)

    groups = []
    for first in range(0, len(step["prompt_ids"]), group_size):
        prompts, completions, verdicts = zip(*(row(first + offset) for offset in range(group_size)), strict=True)
        assert len(set(prompts)) == 1, "rows of one group have one prompt"
        groups.append(Group(Prompt(Problem(str(first), "race", ""), prompts[0]), completions, verdicts))
    return groups


@torch.no_grad()
def surprise_minus_entropy(model: Any, step: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Mean of ``-log pi(y_t) - H(pi)`` over the sampled tokens, and its standard error.

    **Limits** Tokens drawn from ``pi``: expectation 0. From a truncated ``pi``: below 0.
    """
    ids = torch.cat([step["prompt_ids"], step["completion_ids"]], 1)
    mask = torch.cat([step["prompt_mask"], step["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    num_answer = step["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -num_answer - 1 : -1]
    logp = logits.double().log_softmax(-1)
    surprise = -logp.gather(-1, step["completion_ids"][..., None]).squeeze(-1)
    excess = (surprise + (logp.exp() * logp).sum(-1))[step["completion_mask"] > 0]
    return float(excess.mean()), float(excess.std() / len(excess) ** 0.5)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _, job = job_of("trl float32", ENTRY, Path(folder), args.steps, seed=0, num_threads=args.threads)
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        done = run_python(args.trl_python, Path(__file__), "record", str(path), folder, job=job)
        if done.returncode:
            raise SystemExit(f"TRL's side failed:\n{done.stderr[-3000:]}")
        lines = replay(job, Path(folder))
    (RESULTS / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print("| step | apart / moved | TRL's surprise - entropy, nats/token |\n|--:|--:|--:|")
    for line in lines:
        print(
            f"| {line['step']} | {line['apart']:.1e} | {line['excess_nats']:+.4f} ± {line['excess_error_nats']:.4f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
        record(json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
    else:
        main()
