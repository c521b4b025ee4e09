"""Time of a whole training step with each optimizer, as a ratio to fused AdamW on the same transformer, and its state.

    OMP_NUM_THREADS=1 python benchmarks/optim/race.py --out race.json

Every round takes one step with every optimizer, in turn, on the same tokens, and the ratio is that of medians over
rounds, in CPU seconds of this process (`time.process_time`), so that other work on the machine enters less. Optimizers
that renew something now and then do so in every second round here; both kinds of step are timed apart, and the table
gives their mean at one renewal in ten steps. Extra passes (scores, statistics) are timed apart as well: "own" is the
step without them, "whole" with them. Peers (`pytorch_optimizer`) are timed where they are installed. The result is
written after every round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heliostat.curvature import sampled_log_likelihood
from heliostat.linalg.newton_inverse import direct_inverse
from heliostat.optim import RENG, RING, Eva, KroneckerProduct, KroneckerSum, Rank1NaturalGradient, RKalman

WIDTH, LAYERS, VOCAB, LENGTH = 320, 8, 512, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (8, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """About ten million parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


@dataclass
class Contender:
    """A model with its optimizer."""

    model: Transformer
    optimizer: Any  # torch's, the library's or a rival's: the object tells its features

    def step(self, tokens: Tensor) -> tuple[float, float]:
        """CPU seconds of the step without its extra pass, and of the extra pass."""
        began = time.process_time()
        self.optimizer.zero_grad()
        if getattr(self.optimizer, "extra_pass", "none") == "reevaluation":
            self.optimizer.step(lambda: self.loss(tokens))
            return time.process_time() - began, 0.0
        self.loss(tokens).backward()
        extra = self._extra(tokens)
        self.optimizer.step()
        return time.process_time() - began - extra, extra

    def loss(self, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def _extra(self, tokens: Tensor) -> float:
        kind = getattr(self.optimizer, "extra_pass", "none")
        began = time.process_time()
        if kind == "scores":
            with self.optimizer.score():  # one sequence of the batch
                sampled_log_likelihood(self.model(tokens[:1, :-1])).backward()
        elif kind == "statistics" and self.optimizer.wants_statistics:
            with self.optimizer.statistics():
                sampled_log_likelihood(self.model(tokens[:, :-1])).backward()
        return time.process_time() - began

    @property
    def state_bytes(self) -> float:
        """Bytes kept between steps per parameter, wherever in the state they are."""
        tensors = {id(t): t for t in tensors_in(self.optimizer.state)}.values()
        kept = sum(t.numel() * t.element_size() for t in tensors)
        return (kept - self.own_bytes) / sum(p.numel() for p in self.model.parameters())

    @property
    def own_bytes(self) -> int:
        """Parameters and gradients are keys and guests of the state, not part of it."""
        guests = {id(t) for p in self.model.parameters() for t in (p, p.grad)}
        found = {id(t): t for t in tensors_in(self.optimizer.state)}
        return sum(t.numel() * t.element_size() for key, t in found.items() if key in guests)


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, lists and objects."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_in(value)
    elif hasattr(thing, "__dict__"):
        yield from tensors_in(vars(thing))


def fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def peer(name: str, **settings: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(model.parameters(), lr=1e-3, **settings)

    return make


OURS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW (fused)": fused_adamw,
    "rank-1": lambda m: Rank1NaturalGradient(m.parameters(), lr=1e-3),
    "Eva": lambda m: Eva(m, lr=1e-3, damping=1.0),
    "RING": lambda m: RING(m, lr=1e-3, rho=0.1, ema=0.6, statistics_every=2, inverse_every=2),
    "RENG (finite difference)": lambda m: RENG(fused_adamw(m), rho=0.01),
    "R-Kalman (diagonal)": lambda m: RKalman(m.parameters(), lr=1e-3),
    "Kronecker-sum": lambda m: KroneckerSum(m.named_parameters(), lr=1e-3, precondition_every=2),
    "Kronecker-sum, blocks of 512": lambda m: KroneckerSum(
        m.named_parameters(), lr=1e-3, precondition_every=2, block_size=512
    ),
    "Kronecker-product": lambda m: KroneckerProduct(m.named_parameters(), lr=1e-3, precondition_every=2),
    "Kronecker-product, blocks of 512": lambda m: KroneckerProduct(
        m.named_parameters(), lr=1e-3, precondition_every=2, block_size=512
    ),
}
SHAMPOO: dict[str, Any] = {"preconditioning_compute_steps": 2, "start_preconditioning_step": 1}
PEERS = {
    "Shampoo (pytorch_optimizer), whole": peer("ScalableShampoo", **SHAMPOO, block_size=2048),
    "Shampoo (pytorch_optimizer), blocks of 512": peer("ScalableShampoo", **SHAMPOO),
    "SOAP (pytorch_optimizer)": peer("SOAP", precondition_frequency=2),
}
PERIOD = 10
"""Steps between renewals in the table."""

Times = list[tuple[float, float]]


def amortised(times: Times, whole: bool) -> float:
    """Median step at one renewal in ``PERIOD``: odd and even rounds are compared, the dearer kind is the renewal."""
    seconds = [step + (extra if whole else 0.0) for step, extra in times[1:]]
    kinds = sorted(statistics.median(kind) for kind in (seconds[::2], seconds[1::2]) if kind)
    return kinds[0] + (kinds[-1] - kinds[0]) / PERIOD


def table(contenders: dict[str, Contender], seconds: dict[str, Times], num_tokens: int) -> dict[str, Any]:
    base = statistics.median(step for step, _ in seconds["AdamW (fused)"][1:])
    rows = {}
    for name, times in seconds.items():
        renews = any(part in name for part in ("RING", "Kronecker", "Shampoo", "SOAP"))
        plain = statistics.median(step for step, _ in times[1:])
        full = statistics.median(step + extra for step, extra in times[1:])
        rows[name] = {
            "own": (amortised(times, whole=False) if renews else plain) / base,
            "whole": (amortised(times, whole=True) if renews else full) / base,
            "state_bytes_per_parameter": contenders[name].state_bytes,
            "rounds": len(times) - 1,
            "adamw_cpu_seconds": base,
        }
    return {
        "parameters": sum(p.numel() for p in contenders["AdamW (fused)"].model.parameters()),
        "tokens_per_step": num_tokens,
        "rows": rows,
    }


def race(num_rounds: int, batch_size: int, out: Path | None, only: list[str] | None) -> dict[str, Any]:
    makers = OURS | (PEERS if importlib.util.find_spec("pytorch_optimizer") else {})
    chosen = [name for name in makers if name == "AdamW (fused)" or only is None or name in only]
    contenders = {}
    for name in chosen:
        model = Transformer()
        contenders[name] = Contender(model, makers[name](model))
    generator = torch.Generator().manual_seed(1)
    seconds: dict[str, Times] = {name: [] for name in contenders}
    result: dict[str, Any] = {}
    for number in range(num_rounds + 1):
        tokens = torch.randint(0, VOCAB, (batch_size, LENGTH + 1), generator=generator)
        for name, contender in contenders.items():
            seconds[name].append(contender.step(tokens))
        if number >= 2:
            result = table(contenders, seconds, batch_size * LENGTH)
            earlier = json.loads(out.read_text())["rows"] if only and out and out.exists() else {}
            rows = earlier | result["rows"]
            result["rows"] = {name: rows[name] for name in [*OURS, *PEERS] if name in rows}
            if out:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def ceilings(size: int = 4 * WIDTH) -> dict[str, float]:
    """CPU seconds of what the optimizers are made of, the least of three: a product of n x n matrices, and so on."""
    matrix = torch.randn(size, 2 * size)
    matrix = matrix @ matrix.T / size
    parts: dict[str, Callable[[], Any]] = {
        "product_s": lambda: matrix @ matrix,
        "eigenvectors_s": lambda: torch.linalg.eigh(matrix),
        "direct_inverse_s": lambda: direct_inverse(matrix),
    }
    seconds = {}
    for name, part in parts.items():
        taken = []
        for _ in range(3):
            began = time.process_time()
            part()
            taken.append(time.process_time() - began)
        seconds[name] = min(taken)
    return {"size": float(size), **seconds, "product_gflop_per_s": 2e-9 * size**3 / seconds["product_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="counted steps per contender; one more is not counted")
    parser.add_argument("--batch-size", type=int, default=32, help=f"sequences of {LENGTH} tokens per step")
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="these beside AdamW; default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ceilings", action="store_true", help="time single products, eigenvectors, inverses instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.ceilings:
        print(ceilings())
        return
    result = race(max(2, arguments.rounds), arguments.batch_size, arguments.out, arguments.only)
    for name, row in result["rows"].items():
        print(name, {key: round(value, 3) for key, value in row.items()})


if __name__ == "__main__":
    main()
