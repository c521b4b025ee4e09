"""The choice of a way to decode a model: each is tried before it is trusted, and the fastest correct one is used.

    shared prompts, fused layers > shared prompts > a copy of the prompt a row (whole mask, then padding mask)
    > the model's own cache, prompts of equal length > no cache, prompts of equal length > no cache, one row at a time

A trial samples a few prompts of mixed lengths, several tokens each, rows ending and coming in between, and compares the
recorded log-probabilities with the model's own forward of each text alone (``models.checks.reference_forward``). The
last way is that forward, so a causal model that gives the same numbers twice always has one.

Left out: servers, which are compared after every sync of weights (``server.parity``).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch

from heliostat.config import ConfigError, RolloutSection
from heliostat.models import LoadedModel
from heliostat.models.architecture_probes import num_embedded_ids
from heliostat.models.checks.reference_forward import (
    Tolerance,
    common_contexts,
    comparison_mode,
    measure_tolerance,
    mixed_contexts,
    num_tried,
    reference_log_probs,
    short_error,
    unreached,
)
from heliostat.models.concurrency import runs_in_threads
from heliostat.rollout.completions import CompletionBuilder, DecodeLimits
from heliostat.rollout.in_process.engine import TorchEngine
from heliostat.rollout.in_process.plain import PlainEngine
from heliostat.rollout.in_process.rows import PaddedRows, Rows
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.rollout.in_process.shared import SharedRows
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import SamplingSettings
from heliostat.types import Group, Problem, Prompt

InProcess = TorchEngine | PlainEngine

GROUP_SIZE, MAX_ROWS = 2, 4
"""Members of a trial's groups, and rows at once: fewer than there are, so that some begin while others are decoded."""

MEAN_LENGTH = 3
"""One id of so many ends a trial's completion, so that rows end at different times."""

NUM_THREADS = 2
"""Threads that decode at once in a trial of an engine that may use several."""

NUM_REPLIES = 2
"""Replies in a trial of several turns."""

NUM_STORED = 2
"""Tokens that are decoded in the stored dtype too, where the comparison uses another; one is the prompt's."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to decode: its name in a sentence, and a function that builds its engine if the model has this way."""

    name: str
    build: Callable[[LoadedModel, DecodeLimits], InProcess | None]


class WrongWay(ValueError):
    """A way of decoding does not give the model's own numbers; the message says why."""


def ways_of(loaded: LoadedModel, section: RolloutSection) -> Iterator[Way]:
    """Yield the ways that the model's structure allows, fastest first."""
    torch_engine = functools.partial(
        TorchEngine, num_workers=section.decode_workers, reorder_weights=section.reorder_weights
    )

    def shared(fused: bool) -> Callable[[LoadedModel, DecodeLimits], InProcess | None]:
        def build(model: LoadedModel, limits: DecodeLimits) -> InProcess | None:
            engine = torch_engine(model, limits, shared_prompt=True, fused_layers=fused)
            return engine if engine.rows_kind is SharedRows and (engine.fused is not None) == fused else None

        return build

    def copied(kind: type[Rows]) -> Callable[[LoadedModel, DecodeLimits], InProcess]:
        return lambda model, limits: torch_engine(model, limits, shared_prompt=False, copies=kind)

    def cached(model: LoadedModel, limits: DecodeLimits) -> InProcess | None:
        engine = PlainEngine(model, limits)
        return engine if engine.has_memory else None

    # A trial cannot reach such a window, so only the model's own cache is known to handle it.
    if loaded.cache_kind == "kv" and not unreached(loaded):
        if section.shared_prompt and section.fused_layers:
            yield Way("shared prompts and fused layers", shared(fused=True))
        if section.shared_prompt:
            yield Way("shared prompts", shared(fused=False))
        yield Way("a copy of the prompt for each row", copied(Rows))
        yield Way("a copy of the prompt for each row and a padding mask", copied(PaddedRows))
    yield Way("the model's own cache, prompts of equal length together", cached)
    yield Way("no cache, prompts of equal length together", lambda m, n: PlainEngine(m, n, has_memory=False))
    yield Way(
        "no cache, one row at a time", lambda m, n: PlainEngine(m, dataclasses.replace(n, max_rows=1), has_memory=False)
    )


def fastest_right_way(
    loaded: LoadedModel, limits: DecodeLimits, section: RolloutSection, several_turns: bool = False
) -> InProcess:
    """Build the engine of the first way that passes its trial; a warning says why others were passed over.

    Args:
        several_turns: try completions of several turns too.

    Raises:
        ConfigError: no way gives the model's own numbers, because there are no such numbers.
    """
    trial = Trial.of(loaded, several_turns)
    passed_over: list[str] = []
    for way in ways_of(loaded, section):
        try:
            engine = trial.engine(way, limits)
        except WrongWay as error:
            passed_over.append(str(error))
            continue
        if engine is None:
            continue
        engine.way = way.name
        if passed_over:
            warnings.warn(
                f"model '{loaded.name}' is decoded with {way.name}, because faster ways are wrong: "
                f"{'; '.join(passed_over)}",
                stacklevel=2,
            )
        return engine
    raise ConfigError(
        f"model '{loaded.name}' cannot be sampled: even the whole text run again for every token does not give the "
        f"numbers of its own forward ({passed_over[-1]}), so {trial.how_it_wavers()}"
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """A model, and the largest error that a way of decoding it may have."""

    loaded: LoadedModel
    measure: Tolerance
    several_turns: bool = False

    @classmethod
    def of(cls, loaded: LoadedModel, several_turns: bool = False) -> Trial:
        """Measure the model."""
        return cls(loaded, measure_tolerance(loaded), several_turns)

    def engine(self, way: Way, limits: DecodeLimits) -> InProcess | None:
        """Build a way's engine and try it; return ``None`` where the model has no such way.

        Raises:
            WrongWay: the engine fails, or its numbers are not those of the model's own forward.
        """
        with _errors_of(way):
            engine = way.build(self.loaded, limits)
        if isinstance(engine, TorchEngine) and engine.num_workers == 0:
            engine.num_workers = self._tried_workers(way, engine)
        elif engine is not None:
            self._check(way, engine)
        return engine

    def _tried_workers(self, way: Way, engine: TorchEngine) -> int:
        """Try an engine that chooses its threads; return its setting, 1 where several threads are wrong.

        Raises:
            WrongWay: one thread is wrong too.
        """
        if not runs_in_threads(self.loaded.model):
            self._check(way, engine)  # it chooses one
            return 0
        if torch.get_num_threads() > 1:
            engine.num_workers = NUM_THREADS
            with suppress(WrongWay):  # then one thread is tried, and used
                self._check(way, engine)
                return 0
        engine.num_workers = 1
        self._check(way, engine)
        return 1

    def _check(self, way: Way, engine: InProcess) -> None:
        """Compare the engine's numbers with those of the model's own forward.

        Raises:
            WrongWay: the engine fails, or the numbers differ.
        """
        with _errors_of(way):
            with comparison_mode(self.loaded, self.measure.gain):
                groups = self._sample(engine, num_tried(self.loaded))
                if self.several_turns:
                    groups += self._sample_turns(engine, num_tried(self.loaded))
                gap = float(np.max([self._gap(group) for group in groups]))
            if self.loaded.model.dtype != torch.float32:
                self._sample(engine, min(NUM_STORED, num_tried(self.loaded)))  # failures in the stored dtype alone
        if not gap <= self.measure.bound:  # also if the difference is NaN
            raise WrongWay(
                f"{way.name}: log-probabilities off by {gap:.1g}, where rounding explains {self.measure.bound:.1g}"
            )
        engine.take_counts()

    def how_it_wavers(self) -> str:
        """Say how the model contradicts itself: from one time to the next, or from a text to a longer one."""
        context, *_ = mixed_contexts(self.loaded)
        with comparison_mode(self.loaded, self.measure.gain):
            once, again = (
                reference_log_probs(self.loaded, context[:1], context[1:], self.measure.temperature) for _ in range(2)
            )
        if not float((once - again).abs().sum()) <= self.measure.bound:
            return "it does not say the same twice"
        return "what it says of a text changes when the text goes on, and it is not a causal language model"

    def _sample(self, engine: InProcess, num: int) -> list[Group]:
        """Sample all prompts together to the last token; then with rows that end and others that take their place."""
        settings = SamplingSettings(temperature=self.measure.temperature)
        mixed = _prompts(mixed_contexts(self.loaded))
        endless = dataclasses.replace(self.loaded, eos_ids=frozenset())
        if isinstance(engine, PlainEngine):  # decodes rows of one length together, to the end
            with _borrowed(engine, endless, DecodeLimits(num)):
                return engine.sample(SampleRequest(mixed, GROUP_SIZE, settings, seed=0, policy_step=0))
        with _borrowed(engine, endless, DecodeLimits(num)):
            groups = engine.sample(SampleRequest(mixed, 1, settings, seed=0, policy_step=0))
            if engine.rows_kind is SharedRows:
                common = _prompts(common_contexts(self.loaded))
                groups += engine.sample(SampleRequest(common, 1, settings, seed=1, policy_step=0))
        ends = frozenset(range(0, num_embedded_ids(self.loaded.model), MEAN_LENGTH))
        ending = dataclasses.replace(self.loaded, eos_ids=ends)
        with _borrowed(engine, ending, DecodeLimits(num, max_rows=MAX_ROWS, min_freed=0.0)):
            return groups + engine.sample(SampleRequest(mixed, GROUP_SIZE, settings, seed=2, policy_step=0))

    def _sample_turns(self, engine: InProcess, num: int) -> list[Group]:
        """Sample completions of several turns of uneven lengths, with replies of uneven lengths between them."""
        contexts = mixed_contexts(self.loaded)
        prompts = _prompts([context[: max(1, len(context) // 2)] for context in contexts])
        dialogues = [
            [Scripted(script(context, NUM_REPLIES, 1 + (number + member) % 3), num) for member in range(GROUP_SIZE)]
            for number, context in enumerate(contexts)
        ]
        settings = SamplingSettings(temperature=self.measure.temperature)
        ends = frozenset(range(0, num_embedded_ids(self.loaded.model), MEAN_LENGTH))
        with _borrowed(engine, dataclasses.replace(self.loaded, eos_ids=ends), DecodeLimits(4 * NUM_REPLIES + 3 * num)):
            request = SampleRequest(prompts, GROUP_SIZE, settings, seed=3, policy_step=0, dialogues=dialogues)
            return engine.sample(request)

    def _gap(self, group: Group) -> float:
        """Return the largest error of a group's log-probabilities."""
        gaps = [0.0]
        for completion in group.completions:
            truth = reference_log_probs(
                self.loaded, group.prompt.context_ids, completion.token_ids, self.measure.temperature
            )
            sampled = [place for start, end in completion.spans for place in range(start, end)]
            gaps.append(float(np.abs(truth.numpy()[sampled] - completion.logp_gen).max()))
        return float(np.max(gaps))  # NaN if one of them is NaN


@contextmanager
def _errors_of(way: Way) -> Iterator[None]:
    """Raise ``WrongWay`` for any error of this block but too little memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code can raise any error on an unsupported call
        raise WrongWay(f"{way.name}: {short_error(error)}") from error


def _prompts(contexts: Sequence[tuple[int, ...]]) -> list[Prompt]:
    return [Prompt(Problem(f"trial {index}", "trial", ""), ids) for index, ids in enumerate(contexts)]


@contextmanager
def _borrowed(engine: InProcess, loaded: LoadedModel, limits: DecodeLimits) -> Iterator[None]:
    """Within this context, an engine decodes under other limits and with other ids that end a completion."""
    before = engine.loaded, engine.limits, engine.builder
    limits = dataclasses.replace(limits, max_rows=min(limits.max_rows, engine.limits.max_rows))
    engine.loaded, engine.limits, engine.builder = loaded, limits, CompletionBuilder(loaded, limits)
    try:
        yield
    finally:
        engine.loaded, engine.limits, engine.builder = before
