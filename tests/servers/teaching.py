"""A teacher and a judge on a real vLLM: the same teacher in a trainer's process is the truth.

Left out: the server, and the runs that sample from it (``environment``, ``try_vllm``).
"""

from __future__ import annotations

import json
from pathlib import Path

from environment import make_model, serving
from running import Trial, apart, asked, finished_run, kill_at_step, refused

from heliostat.config import ModelSection
from heliostat.models import load_model

STEPS = {"train__num_steps": 5, "train__checkpoint_every": 2}


def teaching_cases(commands: Path, here: Trial, policy: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return what became of all cases, and the server's answers."""
    taught, read = teacher_cases(commands, here, policy)
    judged, graded = judge_cases(commands, here, policy)
    return taught | judged, read | graded


def teacher_cases(commands: Path, here: Trial, policy: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Distil a deeper model that a server serves, kill and continue, and meet what is refused."""
    teacher = make_model(here.folder / "teacher", num_layers=3)
    by_path = {"teacher__path": teacher, "teacher__dtype": "float32"}
    served = {"teacher__url": f"http://127.0.0.1:{here.port}", "teacher__model": teacher}
    finished_run(here, "taught-in-process", model__path=policy, **by_path, **STEPS)
    with serving(commands, teacher, here.folder / "server.log", here.port, lora=False):
        results = {"a teacher": compared(here, "taught-in-process", "taught", model__path=policy, **served, **STEPS)}
        kill_at_step(here, "taught-killed", 4, model__path=policy, **served, **STEPS)
        finished_run(here, "taught-killed", model__path=policy, **served, **STEPS)
        assert apart(here, "taught", "taught-killed") == 0
        results["a teacher, kill -9 at a checkpoint"] = {"weights": "those of the run that was not killed, bit for bit"}
        answers = recorded(here.port, teacher)
        other = {"model__path": "smollm2-135m", "model__chat": "false"}
        results["a teacher of another tokenizer"] = refused(here, "foreign", "another tokenizer", **served, **other)
    with serving(commands, teacher, here.folder / "server.log", here.port, "--max-model-len", "12", lora=False):
        results["a teacher for shorter texts"] = refused(
            here, "short-teacher", "does not fit the context", model__path=policy, **served
        )
    return results, answers


def recorded(port: int, teacher: Path) -> dict[str, dict]:
    """Ask a teacher's routes once, the way the client does, and return the answers."""
    sampling = {"model": str(teacher), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
                "repetition_penalty": 1.0}  # fmt: skip
    scored = sampling | {"prompt": [[5, 6, 7], [5, 6]], "prompt_logprobs": 0}
    drawn = sampling | {"prompt": [5, 6], "n": 2, "return_token_ids": True}
    text = {"model": str(teacher), "prompt": "1 + 2", "add_special_tokens": False}
    return {
        "/v1/completions scores": asked(port, "POST", "/v1/completions", scored),
        "/v1/completions draws": asked(port, "POST", "/v1/completions", drawn),
        "/tokenize": asked(port, "POST", "/tokenize", text),
    }


def compared(here: Trial, truth: str, run: str, **options: object) -> dict:
    """Train with the server, and compare every step and the weights with the run whose teacher was in its process."""
    seconds = finished_run(here, run, **options)
    pairs = zip(here.rows(truth), here.rows(run), strict=True)
    gaps = [abs(ours["teacher/kl"] - theirs["teacher/kl"]) for ours, theirs in pairs if "teacher/kl" in ours]
    assert len(gaps) == STEPS["train__num_steps"]
    assert max(gaps) < 1e-4, gaps
    assert apart(here, truth, run) < 1e-4
    tokens = [row["teacher/tokens"] for row in here.rows(run) if "teacher/tokens" in row]
    return {
        "largest_gap_nats": float(f"{max(gaps):.2g}"),
        "weights_apart": float(f"{apart(here, truth, run):.2g}"),
        "tokens_of_a_step": tokens,
        "seconds": seconds,
    }


def judge_cases(commands: Path, here: Trial, policy: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Ask SmolLM2-135M-Instruct, which answers and never grades: questions and answers are read, and the run stops."""
    judge = here.folder / "judge"
    loaded = load_model(ModelSection(path="smollm2-135m", dtype="float32"), 0)
    loaded.model.save_pretrained(judge)
    loaded.tokenizer.save_pretrained(judge)
    asks = {
        "judge__url": f"http://127.0.0.1:{here.port}",
        "judge__model": judge,
        "judge__rubric": "Full marks for the right sum alone.",
        "judge__max_tokens": 8,
        "judge__timeout_s": 300,
        "train__num_steps": 1,
        "eval__every": 0,
        "eval__num_problems": 2,
        "rollout__prompts_per_step": 2,
        "model__path": policy,
        "audit__enabled": "false",
    }
    results = {}
    with serving(commands, judge, here.folder / "server.log", here.port, "--max-model-len", "2048", lora=False):
        for mode in ("score", "pairwise"):
            said = refused(here, f"judged-{mode}", "scored only", judge__mode=mode, **asks)
            kept = [json.loads(line) for path in (here.place(f"judged-{mode}") / "judge-replies").iterdir()
                    for line in path.read_text().splitlines()]  # fmt: skip
            assert kept
            assert all(reply["prompt_tokens"] > 100 and reply["reply_tokens"] == 8 for reply in kept)
            results[f"a judge that does not grade, {mode}"] = said | {"replies": len(kept)}
        question = {"model": str(judge), "messages": [{"role": "user", "content": "Is 1 + 2 = 3?"}], "temperature": 0,
                    "max_tokens": 4}  # fmt: skip
        path = "/v1/chat/completions"
        answers = {path: asked(here.port, "POST", path, question)}
    return results, answers
