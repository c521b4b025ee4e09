"""One family, from a folder that transformers wrote to a trained model read again; one JSON object on standard output.

    python benchmarks/families/check.py FAMILY

    load     the folder, with everything that is tried at load
    sample   its own greedy continuations, computed one prompt at a time without a cache, are what it samples (share)
    score    log-probabilities of training equal the model's own forward
    train    ``heliostat train``: a warm-start step and two steps of training, with finite gradients
    save     what the run wrote is read by transformers, with every weight
    reload   it is sampled from, and says what the trained model says

A cell is ``works``, ``refuses: `` and the sentence, or ``FAILS: `` and the error.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from small import NotBuilt, write_small

from heliostat.cli.entry import is_refusal, one_line
from heliostat.config import ModelSection, Recipe, RolloutSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, build_engine
from heliostat.train import run_recipe
from heliostat.train.console.progress import Display
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Problem, Prompt, TrainingGroup

TEXTS = (
    "1 + 2 =",
    "10 + 25 - 3 + 4 - 100 + 77 =",
    "7 =",
    "what is 123 + 456 - 789 + 12 =",
    "5 - 4 =",
    "0 + 0 - 1 + 22 =",
)
NUM_TOKENS = 8
CELLS = ("load", "sample", "score", "train", "save", "reload")


def load(folder: Path) -> LoadedModel:
    loaded = load_model(ModelSection(path=str(folder), dtype="float32"), seed=0, device=torch.device("cpu"))
    loaded.model.eval()
    return loaded


@torch.no_grad()
def own_continuation(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """Greedy, one prompt, the whole text again for every token."""
    ids = list(prompt.context_ids)
    for _ in range(NUM_TOKENS):
        token = int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids.append(token)
        if token in loaded.eos_ids:
            break
    return ids[len(prompt.context_ids) :]


def greedy_share(loaded: LoadedModel) -> tuple[float, str]:
    """Share of prompts whose batched greedy sample is the model's own continuation, and how it was decoded."""
    prompts = [encode_problem(loaded, Problem(str(i), "t", text), chat=False) for i, text in enumerate(TEXTS)]
    engine: Any = build_engine(loaded, DecodeLimits(NUM_TOKENS), RolloutSection())
    groups = engine.sample(SampleRequest(prompts, 1, SamplingSettings(temperature=0), seed=0, policy_step=0))
    own = [own_continuation(loaded, prompt) for prompt in prompts]
    right = [list(group.completions[0].token_ids) == ids for group, ids in zip(groups, own, strict=True)]
    return sum(right) / len(right), engine.way


@torch.no_grad()
def score_gap(loaded: LoadedModel) -> float:
    """Largest difference between what training scores and the model's own forward of each text alone."""
    prompts = [encode_problem(loaded, Problem(str(i), "t", text), chat=False) for i, text in enumerate(TEXTS)]
    engine = build_engine(loaded, DecodeLimits(NUM_TOKENS), RolloutSection())
    groups = engine.sample(SampleRequest(prompts, 2, SamplingSettings(), seed=1, policy_step=0))
    rows = rows_of([TrainingGroup(group, torch.zeros(2)) for group in groups])
    logp = Policy(loaded, 1.0, shared_prompt=True).log_probs(rows)
    own = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.context_ids, *row.completion.token_ids]])
        whole = torch.log_softmax(loaded.model(input_ids=ids, use_cache=False).logits.float(), -1)[0]
        start = row.context_length
        own.append(whole[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0])
    return float((logp - torch.cat(own)).abs().max())


def trained(folder: Path, work: Path) -> Path:
    data = work / "sums.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{7**a} + 1 =", "answer": str(7**a + 1)}) + "\n" for a in range(40)))
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "chat": False},
            "task": [
                {
                    "name": "file",
                    "path": str(data),
                    "answer_column": "answer",
                    "verifiers": [{"name": "rewards:parity"}],
                    "num_train": 16,
                    "num_heldout": 4,
                }
            ],
            "audit": {"enabled": False},  # the reward has nothing to do with the answers
            "warm_start": {"num_steps": 1, "batch_size": 4},
            "rollout": {"prompts_per_step": 2, "group_size": 3, "max_new_tokens": 6},
            "train": {"num_steps": 2},
            "eval": {"every": 0, "final_samples": 1},
            "guard": {"panel_every": 0},
            "run": {"num_threads": 1},
        }
    )
    result = run_recipe(recipe, work / "run", display=Display(Console(quiet=True)))
    if result.status != "finished":
        raise SystemExit(result.reason)
    steps = list(map(json.loads, (work / "run" / "metrics.jsonl").read_text().splitlines()))
    norms = [step.get("optim/grad_norm", math.nan) for step in steps]
    if not (norms[0] > 0 and all(0 <= norm < math.inf for norm in norms)):  # 0: no completion got another reward
        raise AssertionError(f"steps without a gradient: its norms are {norms}")
    return work / "run" / "model"


def saved(folder: Path) -> None:
    found: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    _, report = found
    if report["missing_keys"] or report["unexpected_keys"]:
        raise AssertionError(f"missing {report['missing_keys']}, unexpected {report['unexpected_keys']}")


def outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "works", work()
    except SystemExit as error:
        return f"refuses: {error}", None
    except Exception as error:
        if isinstance(error, NotBuilt):
            return f"not built: {error}", None
        kind = "refuses" if is_refusal(error) else "FAILS"
        return f"{kind}: {'' if is_refusal(error) else type(error).__name__ + ': '}{one_line(error)[:500]}", None


def check(family: str, folder: Path) -> dict[str, Any]:
    """All cells of one family; those after a refusal or a failure are left out where they need what it would give."""
    row: dict[str, Any] = {"family": family, "transformers": transformers.__version__}
    base = folder / "base"
    row["build"], _ = outcome(lambda: write_small(family, base))
    if row["build"] != "works":
        return row
    row["load"], loaded = outcome(lambda: load(base))
    if loaded is None:
        return row
    row["sample"], found = outcome(lambda: greedy_share(loaded))
    if found:
        row["greedy"], row["sampled_with"] = found
        if row["greedy"] < 1:
            row["sample"] = f"FAILS: {row['greedy']:.0%} of its own greedy continuations"
    row["score"], gap = outcome(lambda: score_gap(loaded))
    if gap is not None:
        row["gap"], row["scored_with"] = gap, exact_layouts(loaded).way
        if not gap < 1e-3:
            row["score"] = f"FAILS: log-probabilities off by {gap:.2g}"
    row["train"], path = outcome(lambda: trained(base, folder))
    if path is None:
        return row
    row["save"], _ = outcome(lambda: saved(path))
    row["reload"], found = outcome(lambda: greedy_share(load(path)))
    if found and found[0] < 1:
        row["reload"] = f"FAILS: {found[0]:.0%} of its own greedy continuations"
    return row


def checked(family: str) -> dict[str, Any]:
    """All cells of one family, and what was said on the way, in a folder of its own."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    os.chdir(Path(__file__).parent)  # where the reward function is looked for
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        row = check(family, Path(folder))
    heard = {str(each.message) for each in said if "is decoded with" in str(each.message)}
    row["said"] = sorted(heard)
    return json.loads(json.dumps(row).replace(folder, "."))


if __name__ == "__main__":
    print(json.dumps(checked(sys.argv[1]), indent=1))
