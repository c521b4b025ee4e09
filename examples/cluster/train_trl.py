"""PMD on TRL, started by torchrun on any number of nodes; TRL's flags work, and ours beside them.

    torchrun --nproc-per-node 8 train_trl.py --model_name_or_path MODEL --dataset_name DATA --output_dir out --tau 0.1

The data has TRL's ``prompt`` column and an ``answer``; the reward is whether the completion ends in it.

Left out: everything TRL does; see ``heliostat.adapters.trl``.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config

from heliostat.adapters.trl import PMDConfig, PMDTrainer


@dataclass
class ObjectiveArguments:
    """The objective's temperature as a flag of its own, since it is the one to tune."""

    tau: float = field(default=0.2, metadata={"help": "Temperature of the mirror step, in reward units."})


def correct(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 where the completion's text ends in the answer."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(text.strip().endswith(str(expected))) for text, expected in zip(texts, answer, strict=True)]


def parser() -> TrlParser:
    """TRL's own parser for TRL's and our flags."""
    return TrlParser((ScriptArguments, PMDConfig, ModelConfig, ObjectiveArguments))


def main() -> None:
    script, config, model, objective = parser().parse_args_and_config()
    config.objective_settings = {**(config.objective_settings or {}), "tau": objective.tau}
    trainer = PMDTrainer(
        model=model.model_name_or_path,
        reward_funcs=correct,
        args=config,
        train_dataset=load_dataset(script.dataset_name, name=script.dataset_config)[script.dataset_train_split],
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model(config.output_dir)


if __name__ == "__main__":
    main()
