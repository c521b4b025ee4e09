"""Hostile rows, texts, verifiers, servers and matrices: an answer that is right, or one sentence."""

import json
import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np

from heliostat.config import ConfigError, build_recipe
from heliostat.linalg import ConvergenceError, KroneckerSum, SparsityPattern, inverse_decomposition
from heliostat.printed import visible
from heliostat.report.html.markup import CONTROL_PICTURES, escape
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, Server, ServerEngine, ServerError, Vllm
from heliostat.tasks import VerifierPool, load_task
from tests.support import hostile_rewards as acts
from tests.support.fake_server import FakeServer, serving
from tests.support.hostile_answers import ANSWERS, CONNECTIONS
from tests.support.logdet_exactly import distance
from tests.support.logdet_problems import covariance, cycle, traceless_span
from tests.support.nano import make_nano, make_prompts
from tests.unit.report.html.test_markup import read
from tests.unit.tasks.verifier_pool.test_worker_handle import hostile_task

Counts = tuple[int, int]
PIECES = [
    "\x1b[2J",
    "\x1b]0;T\x07",
    "\u202e",
    "\u200b",
    "\x9b1m",
    "\r",
    "\ud800",
    "<script>",
    "\u2028",
    "é",
    "漢",
    "\U000e0041",
    "ab",
]
SUBSPACES = (SparsityPattern.banded(4, 1), cycle(4), SparsityPattern.full(4), KroneckerSum(2, 2), traceless_span(4, 3))


def spoiled(raw: bytes, randomness: random.Random) -> bytes:
    """A file with a piece flipped, cut out, doubled, or replaced by something nasty."""
    start = randomness.randrange(len(raw))
    end = min(len(raw), start + randomness.choice((1, 2, 7, 40)))
    nasty = (
        b"\xff",
        b"\x00",
        b'"\\ud800"',
        b"NaN",
        b"[" * 5000,
        b"1e999",
        b"\n",
        b'{"prompt": 3}\n',
        b"\xe7\xad",
        b"null",
    )
    middle = randomness.choice((raw[start:end] * 2, b"", randomness.choice(nasty), randomness.randbytes(end - start)))
    return raw[:start] + middle + raw[end:]


def rows(folder: Path, num: int, randomness: random.Random) -> Counts:
    """Spoiled files of problems: read as problems of text, or refused in a sentence that names the file."""
    path = folder / "spoiled.jsonl"
    text = [{"prompt": f"{a} + 1 = é", "answer": str(a + 1)} for a in range(12)]
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in text).encode()
    settings = {"task.name": "file", "task.path": str(path), "task.answer_column": "answer", "task.num_train": 6}
    recipe = build_recipe(settings | {"task.num_heldout": 2, "task.verifiers": [{"name": "exact"}]})
    survived = 0
    for _ in range(num):
        path.write_bytes(spoiled(raw, randomness))
        try:
            task = load_task(recipe.task[0], 0)
        except (ValueError, ConfigError) as error:
            survived += path.name in str(error) and "\n" not in str(error)
        else:
            survived += all(isinstance(problem.question, str) for problem in (*task.train, *task.heldout))
    return survived, num


def texts(num: int, randomness: random.Random) -> Counts:
    """Hostile texts on a terminal and a page: nothing is obeyed, nothing hidden, and the page keeps every character."""
    survived = 0
    for _ in range(num):
        text = "".join(randomness.choices(PIECES, k=12)) + chr(randomness.randrange(0x11000))
        shown, page = visible(text), read(escape(text))
        obeyed = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}
        is_text = {tag for tag, _ in page.elements} <= {"bdi"}
        survived += (
            not obeyed and is_text and page.text == text.encode(errors="replace").decode().translate(CONTROL_PICTURES)
        )
    return survived, num


def verifiers() -> Counts:
    """Verifiers that do to their worker what they can: every verdict comes, and the next sample is judged right."""
    survived = 0
    task = hostile_task(timeout_s=5.0)
    with VerifierPool([task]) as pool:
        for name in acts.ACTS:
            pool.judge(task.train[0], [f"{name} torture"]).result(timeout=120)
            (verdict,) = pool.judge(task.train[0], ["fine"]).result(timeout=120)
            survived += verdict.reward == 1.0
    return survived, len(acts.ACTS)


def servers() -> Counts:
    """Rollout servers that answer with anything at all: one visible sentence each."""
    state, survived = FakeServer(make_nano()), 0
    with serving(state) as url, tempfile.TemporaryDirectory() as folder:
        engine = ServerEngine(make_nano(), DecodeLimits(6), Server(url, num_retries=0), Vllm(), Path(folder), 1, 1e-3)

        def sample() -> None:
            settings = SamplingSettings(temperature=1.0)
            engine.sample(SampleRequest(make_prompts(engine.loaded, 1), 4, settings, seed=3, policy_step=5))

        sample()
        for name, fault in {**ANSWERS, **CONNECTIONS}.items():
            engine.client.server = Server(url, timeout_s=2.0 if name in CONNECTIONS else 60.0, num_retries=0)
            state.always["/v1/completions"] = fault
            try:
                sample()
            except ServerError as error:
                survived += visible(str(error)) == str(error) and len(str(error)) < 500
    return survived, len(ANSWERS) + len(CONNECTIONS)


def matrices(num: int, randomness: random.Random) -> Counts:
    """A = B⁻¹ + C for A of any scale and grading: right in numbers of 40 digits, or refused in a sentence."""
    survived = 0
    for number in range(num):
        centre, spread = randomness.uniform(-300, 300), randomness.choice((0, 0, 3, 20, 100, 600))
        powers = [max(-305.0, min(305.0, centre + randomness.uniform(-spread, spread) / 2)) for _ in range(4)]
        sizes = 10.0 ** (np.asarray(powers) / 2)
        half = covariance(4, number, 10.0 ** randomness.choice((0.5, 3, 8))) * sizes[:, None] * sizes[None, :]
        A = np.triu(half) + np.triu(half, 1).T
        subspace = SUBSPACES[number % len(SUBSPACES)]
        try:
            B = inverse_decomposition(A, subspace).B
        except (ValueError, ConvergenceError) as error:
            survived += "\n" not in str(error)
        else:
            survived += distance(A, B, subspace) < 1e-3
    return survived, num
