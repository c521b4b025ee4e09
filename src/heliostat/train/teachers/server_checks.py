"""Checks of a teacher's server before a run begins: its model, its tokenizer, and its log-probabilities.

    tokenizer      texts made of tokens from all over the vocabulary have the same ids there as here
    places         another last token changes its own log-probability, and none before it
    temperature    of tokens that the server draws at temperature 1, shares equal the probabilities that it gives them

The third one finds numbers that are not normalised, too. Half of the draws choose the tokens and the other half are
compared, which makes the count of each a binomial variable.

Left out: the teacher's weights, of which a run keeps a fingerprint (``Fingerprint``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from heliostat.config import ConfigError
from heliostat.models import LoadedModel
from heliostat.printed import visible_line
from heliostat.rollout import PARITY_BOUNDS, Server, ServerError
from heliostat.train.teachers.scoring_routes import Asked, ScoringRoutes, served_models, tokenized

PROBE = "Tokenizers differ in 1234 small ways:  spaces, Ünïcode, punctuation-marks!\n\tx = y**2"

NUM_SPREAD, PER_TEXT = 512, 64
"""Tokens from all over the vocabulary that are compared, and those of one text."""

NUM_DRAWS, NUM_SIGMAS, ROUNDING = 256, 5.0, 0.03
"""Draws of one token; standard deviations by which a share may differ from its probability, besides rounding."""

MAX_MEAN_GAP = 0.05
"""Nats by which two fingerprints of one model may differ on average over their tokens."""

BATCH = 16
"""Sequences of one request."""


@dataclass(frozen=True, slots=True)
class Served:
    """A teacher's model on its server."""

    server: Server
    routes: ScoringRoutes
    model: str

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " _"]]:
        """Return the log-probabilities of all ids but the first of each sequence."""
        asked = [Asked(tuple(ids), 1) for ids in sequences]
        parts = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
        return [values for part in parts for values in self.routes.score(self.server, self.model, part)]

    @property
    def name(self) -> str:
        return f"teacher '{self.model}' at {self.server.url}"


def room_of(served: Served) -> int | None:
    """Return the tokens that a scored sequence may have; ``None`` where the server does not tell.

    Raises:
        ConfigError: the server does not serve the model, or cannot be asked.
    """
    with _asking():
        models = served_models(served.server, served.routes.title)
    if served.model not in models:
        names = ", ".join(f"'{visible_line(name)}'" for name in models)
        raise ConfigError(f"teacher.model = '{served.model}' is not served at {served.server.url}, which has {names}")
    limit = models[served.model].max_model_len
    return None if limit is None else limit - served.routes.headroom


def check_tokenizer(served: Served, policy: LoadedModel) -> None:
    """Refuse a teacher that would read other tokens than the policy wrote.

    Raises:
        ConfigError: a probe has other ids there, or the server cannot be asked.
    """
    for text in _probes(policy):
        ours = policy.tokenizer.encode(text, add_special_tokens=False)
        with _asking():
            theirs = tokenized(served.server, served.routes.title, served.model, text)
        if ours != theirs:
            place = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            token = policy.tokenizer.convert_ids_to_tokens(ours[place]) if ours else ""
            there = theirs[place] if theirs else "nothing"
            raise ConfigError(
                f"{served.name} has another tokenizer than model '{policy.name}' (token {token!r} of a probe has id "
                f"{ours[place] if ours else 'nothing'} here, and {there} is in its place there), so it cannot read the "
                "policy's token ids; choose a teacher of the same family"
            )


def check_log_probs(served: Served, policy: LoadedModel) -> None:
    """Refuse a server whose log-probabilities are not those of the ids that were sent, at temperature 1.

    Raises:
        ConfigError: they are not, or the server cannot be asked.
    """
    ids = policy.tokenizer.encode(PROBE, add_special_tokens=False)
    start = ids[: len(ids) // 2]
    with _asking():
        drawn = served.routes.draw(served.server, served.model, start, NUM_DRAWS)
    if len(drawn) != NUM_DRAWS:
        raise ConfigError(f"{served.name} drew {len(drawn)} tokens where {NUM_DRAWS} were asked for")
    first, second = drawn[: NUM_DRAWS // 2], drawn[NUM_DRAWS // 2 :]
    tokens = list(dict.fromkeys([*first, *ids]))
    with _asking():
        rows = np.stack(served.score([[*start, token] for token in tokens]))
    _check_places(served, rows)
    probability = dict(zip(tokens, np.exp(rows[:, -1].astype(np.float64)), strict=True))
    common = Counter(first).most_common(1)[0][0]
    for chosen, called in (({common}, f"the token {common}"), (set(first), f"one of {len(set(first))} tokens")):
        share = sum(token in chosen for token in second) / len(second)
        _check_share(served, called, share, sum(probability[token] for token in chosen))


def _check_places(served: Served, rows: Float[np.ndarray, "sequence token"]) -> None:
    """Refuse log-probabilities of other places, by sequences that differ in their last token alone."""
    before, last = (float(np.ptp(part, axis=0).max()) for part in (rows[:, :-1], rows[:, -1:]))
    if 2 * before > last:
        raise ConfigError(
            f"{served.name} gives log-probabilities of other places than those of the tokens: another last token "
            f"changes its own by at most {last:.2g} nats, and those before it by {before:.2g}; they are shifted, or of "
            "other sequences"
        )


def _check_share(served: Served, called: str, share: float, probability: float) -> None:
    num = NUM_DRAWS - NUM_DRAWS // 2
    inside = min(1.0, max(0.0, probability))
    spread = NUM_SIGMAS * math.sqrt(inside * (1.0 - inside) / num) + 3.0 / num + ROUNDING
    if abs(share - probability) > spread:
        raise ConfigError(
            f"{served.name} gives log-probabilities that are not those of temperature 1: {called} was {share:.0%} of "
            f"{num} that it drew at temperature 1, and gets the probability {probability:.0%}"
        )


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A teacher's log-probabilities of a probe, which tell its weights from others."""

    ids: tuple[int, ...]
    values: tuple[float, ...]

    def is_of(self, other: Fingerprint) -> bool:
        """Return whether both are of one model, up to the rounding of bfloat16.

        Two runs of one model in bfloat16 differ by hundredths of a nat on average, and at most by the bound between
        sampler and trainer.
        """
        if self.ids != other.ids or len(self.values) != len(other.values):
            return False
        gaps = np.abs(np.subtract(self.values, other.values))
        return bool(gaps.mean() <= MAX_MEAN_GAP and gaps.max() <= max(PARITY_BOUNDS.values()))


def fingerprint_of(served: Served, policy: LoadedModel) -> Fingerprint:
    """Ask for the fingerprint of the served weights.

    Raises:
        ConfigError: the server cannot be asked.
    """
    ids = policy.tokenizer.encode(PROBE, add_special_tokens=False)
    with _asking():
        (values,) = served.score([ids])
    return Fingerprint(tuple(ids), tuple(float(value) for value in values))


def _probes(policy: LoadedModel) -> Iterator[str]:
    """Yield texts that show the policy's tokenizer."""
    yield PROBE
    size = len(policy.tokenizer)
    spread = [round(place * (size - 1) / max(1, NUM_SPREAD - 1)) for place in range(NUM_SPREAD)]
    pieces = [str(policy.tokenizer.decode([token])) for token in dict.fromkeys(spread)]
    whole = [piece for piece in pieces if "\ufffd" not in piece]
    for start in range(0, len(whole), PER_TEXT):
        yield " ".join(whole[start : start + PER_TEXT])


@contextmanager
def _asking() -> Iterator[None]:
    """Turn the error of a server into that of a setting, since nothing is lost yet.

    Raises:
        ConfigError: there is no answer that can be right.
    """
    try:
        yield
    except ServerError as error:
        raise ConfigError(str(error)) from error
