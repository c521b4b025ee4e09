"""A reward model: a sequence classifier of transformers that scores a question with its completion.

    question, completion  --its own chat template and tokenizer-->  ids  --batches-->  one score each

An episode is a conversation of chat messages: the turns are the assistant's, and the environment's answers the user's.
Where the template takes a single answer, or there is none, it is one text.

A completion's text is data: control tokens in it are encoded as ordinary text, so it cannot end its own turn. A text
that does not fit the model's context is unscored, because a truncated one would be scored for what it does not say.

Left out: several reward models, and those that score tokens or steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heliostat.config import ConfigError, nearest
from heliostat.models import forward_flops
from heliostat.models.loaded_model import render_messages
from heliostat.models.prompts.control_tokens import encode_marked, free_mark, marked
from heliostat.rollout.server.weights_fingerprint import weights_fingerprint
from heliostat.tasks.judging import JudgeCounts, Mark
from heliostat.tasks.transcripts import ASSISTANT, Transcript
from heliostat.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A question and a completion as the model reads them.

    Attributes:
        kinds: BERT's ids of the two parts, else empty.
        failure: the reason why there are no ids; empty if there are.
    """

    ids: tuple[int, ...]
    kinds: tuple[int, ...] = ()
    failure: str = ""


@dataclass(slots=True)
class RewardModel:
    """A judge that is a model in this process.

    Attributes:
        context_length: longest sequence in tokens, question and completion together.
        label: index of the label whose probability is the score; ``None``: the model's only output is.
        tokens_per_batch: tokens of one forward pass, padding included.

    **Limits** A score does not depend on the batch, up to rounding.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    context_length: int
    label: int | None = None
    tokens_per_batch: int = 8192
    memo: dict[str, object] = field(default_factory=dict)
    _counts: JudgeCounts = field(default_factory=JudgeCounts)

    @property
    def name(self) -> str:
        return f"reward model '{self.path}'"

    @property
    def fingerprint(self) -> str:
        """The digest of its weights, its chat template and the chosen label."""
        weights = ",".join(map(str, weights_fingerprint(self.model)))
        said = f"{weights};{self.tokenizer.chat_template};{self.label};{self.model.dtype}"
        return hashlib.sha256(said.encode()).hexdigest()

    def begin(self, problem: Problem, texts: Sequence[str]) -> list[Encoded]:
        """Encode completions; they are scored together with those of other groups."""
        return [self.encode(problem, text) for text in texts]

    def wait(self, ticket: object, timeout_s: float) -> bool:
        """Return true: texts are scored in ``finish``."""
        return True

    def finish(self, tickets: Sequence[list[Encoded]]) -> list[tuple[Mark, ...]]:
        """Score all completions in batches of similar length."""
        rows = [row for ticket in tickets for row in ticket]
        fitting = [index for index, row in enumerate(rows) if not row.failure and len(row.ids) <= self.context_length]
        marks = [Mark(None, row.failure or self._too_long(row)) for row in rows]
        attended = 0
        for batch in _batches(sorted(fitting, key=lambda index: len(rows[index].ids)), rows, self.tokens_per_batch):
            scores = self.scores([rows[index] for index in batch])
            for index, score in zip(batch, scores, strict=True):
                finite = math.isfinite(score)
                marks[index] = Mark(score) if finite else Mark(None, f"{self.name} gave {score}")
                attended += len(rows[index].ids) * (len(rows[index].ids) + 1) // 2
        self._count(marks, sum(len(rows[index].ids) for index in fitting), attended, len(fitting))
        taken = iter(marks)
        return [tuple(next(taken) for _ in ticket) for ticket in tickets]

    def take_counts(self) -> JudgeCounts:
        """Return the work since the last call."""
        counts, self._counts = self._counts, JudgeCounts()
        return counts

    def close(self) -> None:
        """Do nothing: no work outlasts a call."""

    def encode(self, problem: Problem, text: str) -> Encoded:
        """Encode a question and a completion: by the chat template if there is one, else as a pair of texts."""
        prompt = problem.prompt
        if not self.tokenizer.chat_template:
            pair = self.tokenizer(problem.question, text, split_special_tokens=True, verbose=False)
            return Encoded(tuple(pair["input_ids"]), tuple(pair.get("token_type_ids", ())))
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        messages: list[dict[str, Any]] = [*map(dict, asked), *self._answered(text)]
        mark = free_mark([str(message["content"]) for message in messages])
        typed = [{**message, "content": marked(self, str(message["content"]), mark)} for message in messages]
        try:
            rendered = render_messages(self.tokenizer, typed)
        except Exception as error:  # a template may raise anything
            return Encoded((), failure=f"the chat template of {self.name} refuses its messages: {error}")
        return Encoded(tuple(encode_marked(self, rendered, mark)))

    def _answered(self, text: str) -> list[dict[str, Any]]:
        """Return a completion as messages: one, or those of an episode if the template takes several turns."""
        if not isinstance(text, Transcript) or not self._takes_turns():
            return [{"role": "assistant", "content": text}]
        return [{"role": "assistant" if side == ASSISTANT else "user", "content": part} for side, part in text.parts]

    def _takes_turns(self) -> bool:
        """Return whether the template writes all turns of a conversation, found by a trial."""
        if "takes turns" not in self.memo:
            said = [
                {"role": role, "content": f"heliostat-{role}-{number}"}
                for number in range(2)
                for role in ("user", "assistant")
            ]
            try:
                text = render_messages(self.tokenizer, said)
            except Exception:  # a template may raise anything
                text = ""
            self.memo["takes turns"] = all(message["content"] in text for message in said)
        return bool(self.memo["takes turns"])

    @torch.no_grad()
    def scores(self, rows: Sequence[Encoded]) -> list[float]:
        """Score encoded completions in one forward pass."""
        width, device = max(len(row.ids) for row in rows), self.model.device
        pad = self._padding(rows)
        self.model.config.pad_token_id = pad  # by which the model finds each row's last token
        inputs = {
            "input_ids": _padded([row.ids for row in rows], width, pad).to(device),
            "attention_mask": _padded([(1,) * len(row.ids) for row in rows], width, 0).to(device),
        }
        if rows[0].kinds:
            inputs["token_type_ids"] = _padded([row.kinds for row in rows], width, 0).to(device)
        logits: Tensor = self.model(**inputs).logits.float()
        chosen = logits[:, 0] if self.label is None else logits.softmax(dim=-1)[:, self.label]
        return [float(score) for score in chosen.cpu()]

    def _padding(self, rows: Sequence[Encoded]) -> int:
        """Return the model's own padding, else an id that no row holds."""
        if "padding" not in self.memo:
            self.memo["padding"] = self.model.config.pad_token_id
        own = self.memo["padding"]
        if isinstance(own, int):
            return own
        held = {token for row in rows for token in row.ids}
        return next(token for token in range(len(held) + 1) if token not in held)

    def _too_long(self, row: Encoded) -> str:
        return f"question and completion have {len(row.ids)} tokens, and {self.name} reads {self.context_length}"

    def _count(self, marks: Sequence[Mark], tokens: int, attended: int, num_logits: int) -> None:
        before, unscored = self._counts, sum(mark.score is None for mark in marks)
        flops = forward_flops(self, tokens, attended / max(1, tokens), num_logits)
        self._counts = JudgeCounts(
            texts=before.texts + len(marks), unscored=before.unscored + unscored, flops=before.flops + flops
        )


def label_of(model: PreTrainedModel, label: str, path: str) -> int | None:
    """Return the index of the label that is the score; ``None`` for a model with one output.

    Raises:
        ConfigError: the model has several and none is chosen, or has no such label.
    """
    names = {str(name): int(index) for index, name in (model.config.id2label or {}).items()}
    if label and label not in names:
        raise ConfigError(f"judge.label = '{label}'{nearest(label, names)}; '{path}' has: {', '.join(names)}")
    if len(names) == 1:
        return None
    if not label:
        raise ConfigError(
            f"'{path}' has {len(names)} labels ({', '.join(names)}), and a reward is one number; choose the one whose "
            "probability is the score by judge.label, or give a reward model with one output"
        )
    return names[label]


def _padded(rows: Sequence[Sequence[int]], width: int, pad: int) -> Tensor:
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def _batches(order: Sequence[int], rows: Sequence[Encoded], most: int) -> Iterator[list[int]]:
    """Cut rows, sorted by length, into batches of at most ``most`` tokens with padding, or of one row."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(rows[index].ids) > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
