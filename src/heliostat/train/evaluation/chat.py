"""A conversation with one model, or with two in parallel: each reads its own earlier answers.

Left out: reading and printing lines (``cli.chat``), and environments: a model is answered by the user alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from heliostat.config import EnvironmentSection, LoraSection, Recipe
from heliostat.nested_runs import refuse_nested
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.run_models import run_folder_of
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.model_bundle import ModelBundle, set_up_sampler, with_model
from heliostat.train.run_folder.stored_dtype import as_saved
from heliostat.types import Message, Problem


@dataclass
class Speaker:
    """A model with its side of the conversation.

    Attributes:
        name: how it is called: its path, or ``before`` and ``after`` of a run.
        messages: everything said so far.
    """

    name: str
    bundle: ModelBundle
    messages: list[Message] = field(default_factory=list)

    @property
    def has_memory(self) -> bool:
        """Whether it reads earlier turns; a model without a chat template is asked each line by itself."""
        section, tokenizer = self.bundle.recipe.model, self.bundle.loaded.tokenizer
        if section.chat == "auto":
            return bool(tokenizer.chat_template) and tokenizer.sep_token is None
        return section.chat

    def answer(self, line: str, settings: SamplingSettings, seed: int) -> str:
        """Sample the answer to ``line`` and keep both.

        Raises:
            ValueError: the conversation no longer fits in the model's context; nothing is kept.
        """
        asked: Message = {"role": "user", "content": line}
        prompt = (*self.messages, asked) if self.has_memory else line
        request = SampleRequest(
            [self.bundle.prompt(Problem("line", "chat", prompt))], 1, settings, seed=seed, policy_step=0
        )
        text = self.bundle.engine.sample(request)[0].completions[0].text
        self.messages += [asked, {"role": "assistant", "content": text}]
        return text


@dataclass
class Chat:
    """A conversation of one user with one or two models, with the same random numbers for both."""

    speakers: Sequence[Speaker]
    settings: SamplingSettings
    seed: int
    num_lines: int = 0

    def answers(self, line: str) -> list[str]:
        """Return every model's answer."""
        self.num_lines += 1
        seed = completion_seed(self.seed, "chat", self.num_lines)
        return [speaker.answer(line, self.settings, seed) for speaker in self.speakers]

    def forget(self) -> None:
        """Begin a new conversation."""
        for speaker in self.speakers:
            speaker.messages.clear()


def open_chat(models: Sequence[str], recipe: Recipe, settings: SamplingSettings, is_alone: bool = False) -> Chat:
    """Load the models of a conversation.

    Args:
        models: one or two models. A single one that a run saved is joined by the model that the run began with.
        recipe: chat settings, token budget and seed; its environment is left out.
        is_alone: whether a run's first model is left out.

    Raises:
        ConfigError: a model cannot be loaded.
    """
    refuse_nested("a model")
    rollout = recipe.rollout.model_copy(update={"engine": "torch"})
    recipe = recipe.model_copy(update={"rollout": rollout, "environment": EnvironmentSection(name="")})
    runtime = start_runtime(recipe.run)
    named = [(model, with_model(recipe, model)) for model in models]
    if len(models) == 1 and not is_alone and run_folder_of(models[0]) is not None:
        first = as_saved(recipe.model_copy(update={"lora": LoraSection()}))
        named = [(f"before ({first.model.path})", first), (f"after ({models[0]})", named[0][1])]
    speakers = [Speaker(name, set_up_sampler(each, runtime)) for name, each in named]
    return Chat(speakers, settings, recipe.run.seed)
