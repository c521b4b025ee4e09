"""Make a model that has learned to call the tool of ``cards``, as a folder that both sides load.

A tokenizer of 512 byte pairs is trained on the environment's own texts, and a chat template lists tools by name, or by
their whole schemas. The model, of 5M parameters with random weights or SmolLM2, imitates the environment's oracle for
some steps of Heliostat's warm start. It stops while it still makes mistakes, so that rewards within a group differ.

Left out: training on rewards (``tool_sides``).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards import MAX_EPISODE_TOKENS, MAX_TURN_TOKENS, NUM_CALLS, NUM_TURNS, Cards, write_problems

from heliostat.tasks.environments.adapters.trl_class import TRLClass
from heliostat.tasks.environments.contract import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
END = "<|im_end|>"

LISTINGS = {
    "names": "{{ tool.function.name }}({{ tool.function.parameters.properties | join(', ') }})\n",
    "schemas": "{{ tool | tojson }}\n",
}
"""The chat template's list of a tool."""


def chat_template(listing: str) -> str:
    """ChatML with calls as JSON; it only ever appends, as both sides ask."""
    return (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}" + LISTINGS[listing] + "{% endfor %}"
        "<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@dataclass(frozen=True)
class Training:
    """Supervised steps that suffice for the form of a call."""

    num_steps: int
    batch_size: int
    lr: float


TRAINING = {"5M": Training(240, 4, 1.5e-3), "smollm2-135m": Training(24, 4, 2e-4)}


class Taught(TRLClass):
    """The environment with an oracle, which only our side's demonstrations ask."""

    def __init__(self) -> None:
        super().__init__(Cards())
        self.num_turns = 0

    def reset(self, problem: Mapping[str, Any], seed: int) -> str | None:
        self.draws, self.num_turns = random.Random(f"bids {seed}"), 0
        return super().reset(problem, seed)

    def step(self, action: str) -> Step:
        self.num_turns += 1
        return super().step(action)

    def oracle(self) -> str:
        """A random bid, or a random answer after the last one."""
        number = self.draws.randrange(100, 1000)
        if self.num_turns == NUM_CALLS:
            return str(number)
        return f"<tool_call>{json.dumps({'name': 'bid', 'arguments': {'amount': number}})}</tool_call>"


def write_caller(model: str, listing: str, folder: Path, seed: int = 0) -> Path:
    """The trained model's folder, made if it is not there."""
    target = folder / f"{model}-{listing}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as work:
        start = Path(work) / "start"
        untrained_5m(listing, start, seed) if model == "5M" else untrained_smollm2(listing, start)
        taught = imitate(start, TRAINING[model], Path(work), seed)
        shutil.move(taught, target)
    return target


def untrained_5m(listing: str, folder: Path, seed: int) -> None:
    """The Llama shape of ``turns`` with random weights and a tokenizer of this environment."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from turns import FIVE_MILLION

    tokenizer = small_tokenizer(listing)
    shape = dict(FIVE_MILLION)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer(listing: str) -> PreTrainedTokenizerBase:
    """Byte pairs in which digits stand alone and no piece is longer than 8 characters: a call is about 12 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|pad|>", "<|im_start|>", END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=8,
        show_progress=False,
    )
    pieces.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=pieces,
        pad_token="<|pad|>",
        eos_token=END,
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template(listing),
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def texts() -> Iterator[str]:
    """The words of episodes, and the schema of the tool."""
    draws = random.Random("texts")
    schema = json.dumps(Taught().tools()[0])
    for _ in range(200):
        number = draws.randrange(100, 1000)
        call = json.dumps({"name": "bid", "arguments": {"amount": number}})
        turns = f"assistant\n<tool_call>{call}</tool_call>\ntool\nend {number}\n"
        yield f"system\nbid(amount)\nuser\ncard {number}\n{turns}"
        yield schema


def untrained_smollm2(listing: str, folder: Path) -> None:
    """SmolLM2-135M-Instruct with this chat template in place of its own, which knows no tools."""
    from transformers import AutoTokenizer

    from heliostat.config import ModelSection
    from heliostat.models import load_model, save_model

    save_model(load_model(ModelSection(path="smollm2-135m", dtype="float32"), 0), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = chat_template(listing)
    tokenizer.save_pretrained(folder)


def imitate(start: Path, training: Training, work: Path, seed: int) -> Path:
    """Run the warm start alone; the trained model's folder."""
    from heliostat.config import build_recipe
    from heliostat.train import run_recipe

    recipe = build_recipe(
        {
            **episode_settings(start, write_problems(work), "caller:Taught"),
            "run.num_threads": 1,
            "run.seed": seed,
            "warm_start.num_steps": training.num_steps,
            "warm_start.batch_size": training.batch_size,
            "warm_start.lr": training.lr,
            "train.num_steps": 0,
            "train.checkpoint_every": 10_000,
            "eval.every": 0,
            "eval.final_samples": 1,
            "audit.enabled": False,  # random bids are no oracle that it would accept
        }
    )
    result = run_recipe(recipe, work / "run", "caller")
    if result.status != "finished":
        raise SystemExit(result.reason)
    return work / "run" / "model"


def episode_settings(model: Path, problems: Path, environment: str) -> dict[str, Any]:
    """Return the settings of model, problems and environment that both training runs share."""
    return {
        "model.path": str(model),
        "model.dtype": "float32",
        "model.chat": True,
        "task.name": "file",
        "task.path": str(problems),
        "task.num_train": 480,
        "task.num_heldout": 8,
        "environment.name": environment,
        "environment.import_from": str(HERE),
        "environment.max_turns": NUM_TURNS,
        "environment.max_tokens_per_turn": MAX_TURN_TOKENS,
        "environment.max_tokens": MAX_EPISODE_TOKENS,
        "environment.num_workers": 1,
    }
