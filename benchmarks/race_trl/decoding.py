"""The parts of a decoding pass: the time that each takes, and the least that it could take.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/decoding.py --models 5M 25M smollm2-135m --dtypes float32 bfloat16
    python benchmarks/race_trl/decoding.py --table

Groups of 8 with short prompts, decoded for 32 tokens without an end, so that the number of rows stays. Parts are timed
where the sampler calls them, each once; *other* is the rest of the pass: rotation,
residuals, activations and Python. CPU milliseconds a pass, medians of five runs.

The floor reads weights and cache once at the speed of a copy, or does the operations at the rate of a product of
1,024 x 1,024, whichever takes longer; of other parts it is 0.

Left out: several threads, and rows that end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from entries import write_model
from products import best_us

from heliostat.config import ModelSection
from heliostat.models import Head, LoadedModel, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.completions import CompletionBuilder
from heliostat.rollout.in_process import decode_worker
from heliostat.rollout.in_process.fused_linear import FusedLinear
from heliostat.rollout.in_process.own_tokens import OwnLayer
from heliostat.rollout.in_process.shared import SharedRows
from heliostat.rollout.in_process.shared_prompts import SharedPrompts
from heliostat.types import Problem, Prompt

RESULTS = Path(__file__).resolve().parent / "results" / "decoding.jsonl"
GROUP, PROMPT, NUM_TOKENS, NUM_TRIES = 8, 16, 32, 5
CEILING_SIZE, COPIED_BYTES = 1024, 2**28
ROWS = (8, 24, 64)

PARTS: dict[str, list[tuple[Any, str]]] = {
    "prefill": [(decode_worker.DecodeWorker, "prefill")],
    "reordering": [(FusedLinear, "reorder")],
    "products": [(FusedLinear, "__call__"), (FusedLinear, "onto")],
    "attention to own tokens": [(SharedRows, "attended"), (OwnLayer, "update")],
    "attention to prompts": [(SharedPrompts, "scores"), (SharedPrompts, "weighted")],
    "head": [(Head, "logits")],
    "draw": [(decode_worker, "draw"), (CompletionBuilder, "record")],
}
"""Name -> the functions that make up a part; norms are added by model."""

ONCE = ("prefill", "reordering")
"""Parts of a batch of prompts, not of a pass."""


WHOLE = ("prefill", "head")
"""Parts that all belongs to that they call."""


class Stopwatch:
    """CPU seconds of parts, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1] if self._open else "other"] += now - self._since
        self._since = now

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the work on this part's account."""

        def run(*args: Any, **settings: Any) -> Any:
            self._switch()
            self._open.append(self._open[-1] if self._open and self._open[-1] in WHOLE else part)
            try:
                return work(*args, **settings)
            finally:
                self._switch()
                self._open.pop()

        return run

    @contextmanager
    def watching(self, parts: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Within this context, the parts are timed."""
        with ExitStack() as stack:
            for part, places in parts.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            self._since = time.process_time()
            yield
            self._switch()


def request_of(num_rows: int) -> SampleRequest:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (num_rows // GROUP, PROMPT), generator=generator).tolist()
    prompts = [Prompt(Problem(str(index), "t", ""), tuple(each)) for index, each in enumerate(ids)]
    return SampleRequest(prompts, GROUP, SamplingSettings(), seed=1, policy_step=0)


def profile(loaded: LoadedModel, num_rows: int) -> dict[str, float]:
    """Milliseconds a pass by part; of ``ONCE``, milliseconds in all."""
    engine = TorchEngine(dataclasses.replace(loaded, eos_ids=frozenset()), DecodeLimits(NUM_TOKENS))
    request = request_of(num_rows)
    norm: Any = loaded.head.backbone.norm
    runs = []
    for _ in range(NUM_TRIES + 1):
        watch = Stopwatch()
        with watch.watching({**PARTS, "norms": [(type(norm), "forward")]}):
            engine.sample(request)
        runs.append(watch.seconds)
    passes = NUM_TOKENS - 1
    return {
        part: 1e3 * statistics.median(run[part] for run in runs[1:]) / (1 if part in ONCE else passes)
        for part in (*PARTS, "norms", "other")
    }


def floors(loaded: LoadedModel, num_rows: int) -> dict[str, float]:
    """The least milliseconds a pass by part."""
    dtype = loaded.model.dtype
    source, square = torch.zeros(COPIED_BYTES, dtype=torch.uint8), torch.ones(CEILING_SIZE, CEILING_SIZE, dtype=dtype)
    bytes_per_ms = 1e3 * 2 * COPIED_BYTES / best_us(partial(torch.empty_like(source).copy_, source), 1)
    flops_per_ms = 1e3 * 2 * CEILING_SIZE**3 / best_us(partial(torch.mm, square, square), 1)
    config, backbone = loaded.model.config, loaded.head.backbone
    head = sum(parameter.numel() for parameter in loaded.head.projection.parameters())
    layers: Any = backbone.layers
    products = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    cached = 2 * 4 * len(layers) * config.num_key_value_heads * layers[0].self_attn.head_dim  # bytes a token
    own = num_rows * NUM_TOKENS / 2
    least = {
        name: max(2 * num_rows * size / flops_per_ms, size * dtype.itemsize / bytes_per_ms)
        for name, size in (("products", products), ("head", head))
    }
    return least | {
        "attention to own tokens": cached * own / bytes_per_ms,
        "attention to prompts": cached * PROMPT * num_rows / GROUP / bytes_per_ms,
    }


def table(points: list[dict[str, Any]]) -> str:
    """A line for each model, dtype and number of rows."""
    parts = [*(part for part in PARTS if part not in ONCE), "norms", "other"]
    lines = [
        f"| model | dtype | rows | {' | '.join(parts)} | pass | floor | x floor | reordering, once |",
        f"|---|---|{'--:|' * (len(parts) + 5)}",
    ]
    for point in points:
        taken, floor = point["ms"], sum(point["floor_ms"].values())
        total = sum(taken[part] for part in parts)
        cells = [*(f"{taken[part]:.2f}" for part in parts), f"{total:.2f}", f"{floor:.2f}", f"{total / floor:.1f}"]
        about = [str(point[key]) for key in ("model", "dtype", "rows")]
        lines.append(f"| {' | '.join([*about, *cells])} | {taken['reordering']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["5M", "25M", "smollm2-135m"])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    stored = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    torch.set_num_threads(1)
    for name in [] if args.table else args.models:
        for dtype in args.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                loaded = load_model(ModelSection(path=str(write_model(name, Path(folder))), dtype=dtype), 0)
            loaded.model.eval()  # type: ignore[no-untyped-call]
            stored = [point for point in stored if (point["model"], point["dtype"]) != (name, dtype)]
            for num_rows in ROWS:
                point = {"ms": profile(loaded, num_rows), "floor_ms": floors(loaded, num_rows)}
                stored.append({"model": name, "dtype": dtype, "rows": num_rows, **point})
            RESULTS.write_text("".join(json.dumps(point) + "\n" for point in stored))
    print(table(stored))


if __name__ == "__main__":
    main()
