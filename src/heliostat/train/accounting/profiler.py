"""A profile of a few steps: time and memory by phase, speed relative to the machine's peak, and a bound on decoding.

    heliostat train RECIPE --profile      prints the table once, after a few steps, and trains on

Seconds come from the named spans in the engine and the updater, and FLOPs from the ledger's exact counts. Ceilings are
a matrix product and a copy, timed in place. Decoding has a lower bound of its own: each pass reads every weight and the
live rows' cache once, and computes the products.

Left out: single kernels (open a trace with torch's own profiler), and time on other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from heliostat.models import BACKWARD_COST, LoadedModel, forward_flops
from heliostat.rollout import RolloutCounts
from heliostat.spans import timed_spans
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.accounting.machine_peak import (
    MachinePeak,
    measure_machine_peak,
    peak_bytes,
    reset_peak_memory,
    wait_for,
)
from heliostat.train.update.counts import UpdateCounts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_STEP, NUM_STEPS = 2, 3
"""Profiled steps of this process; the first step is skipped, since it pays for allocations that later ones reuse."""

SAMPLING = ("prefill", "decode", "draw", "environment")
SPANS = {
    "rollout": SAMPLING,
    "verify": (),
    "update": ("score", "forward", "backward", "optimizer"),
}
"""Phases of a step and the spans inside them (``heliostat.spans``), in order."""
SPANS_AHEAD = SPANS | {"rollout": (), "ahead": SAMPLING}
"""The same for sampling in its own thread: the step only waits for it, and ``ahead`` runs in parallel with the step."""


@dataclass(slots=True, kw_only=True)
class Profile(Ledger):
    """A ledger that also profiles a few steps and then shows a table of them.

    Args:
        loaded: the model in use.
        show: receives the finished table.
    """

    loaded: LoadedModel
    show: Callable[[Table], None]
    num_seen: int = 0
    step_seconds: float = 0.0
    span_seconds: dict[str, float] = field(default_factory=dict)
    step_flops: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    decoded: RolloutCounts = field(default_factory=RolloutCounts)
    _watching: bool = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Profile the step inside if it is one of the profiled steps."""
        self.num_seen += 1
        self._watching = FIRST_STEP <= self.num_seen < FIRST_STEP + NUM_STEPS
        if not self._watching:
            yield
            return
        began = perf_counter()
        with timed_spans() as spans:
            yield
            wait_for(self._device)
        self._watching = False
        self.step_seconds += perf_counter() - began
        _add(self.span_seconds, spans)
        if self.num_seen == FIRST_STEP + NUM_STEPS - 1:
            self.show(self.table(measure_machine_peak(self._device, next(self._model.parameters()).dtype)))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge a phase, and record its peak memory."""
        if not self._watching:
            with Ledger.phase(self, name):
                yield
            return
        reset_peak_memory(self._device)
        with Ledger.phase(self, name):
            yield
            wait_for(self._device)
        _add(self.span_seconds, {name: self.last_seconds[name]})
        self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(self._device))

    @property
    def times_spans(self) -> bool:
        """Whether spans of other threads are timed: always, since sampling ahead began before the profiled step."""
        return True

    def record_async_sampling(self, seconds: float, spans: Mapping[str, float]) -> None:
        """Record the sampling of its own thread in place of the step's."""
        if self._watching and spans:
            _add(self.span_seconds, {"ahead": seconds, **{name: spans[name] for name in SAMPLING if name in spans}})
            _add(self.step_flops, {"ahead": self.step_flops.pop("rollout", 0.0)})

    def charge_rollout(self, phase: str, loaded: LoadedModel, counts: RolloutCounts) -> None:
        """Charge sampling; in profiled steps, count prompts and decoded tokens separately."""
        if self._watching and phase == "rollout":
            tokens = counts.prompt_tokens + counts.reply_tokens
            attended = counts.prompt_attended + counts.reply_attended
            prompts = forward_flops(loaded, tokens, attended / max(1, tokens), counts.prefills + counts.replies)
            decoding = decoding_flops(loaded, counts)
            _add(self.step_flops, {"rollout": prompts + decoding, "prefill": prompts, "decode": decoding})
            self.decoded.decode_steps += counts.decode_steps
            self.decoded.decoded_rows += counts.decoded_rows
            self.decoded.decoded_attended += counts.decoded_attended
        Ledger.charge_rollout(self, phase, loaded, counts)

    def charge_update(self, phase: str, loaded: LoadedModel, counts: UpdateCounts, with_gradient: bool = True) -> None:
        """Charge training; in profiled steps, count scoring, forward and backward separately."""
        before = self.flops[phase]
        Ledger.charge_update(self, phase, loaded, counts, with_gradient)
        total = self.flops[phase] - before
        if not self._watching or phase != "update" or not total:
            return
        forward = total / (1 + BACKWARD_COST)
        parts = {"forward": forward, "backward": total - forward} if with_gradient else {"score": total}
        _add(self.step_flops, {"update": total, **parts})

    def table(self, machine: MachinePeak) -> Table:
        """Build the table: a row per phase and span, per step; decoding's floor and the ceilings are in the caption."""
        seconds = self.step_seconds / NUM_STEPS
        table = Table(
            title=f"One step: {seconds:.3g} s, mean of {NUM_STEPS}", title_justify="left", caption_justify="left"
        )
        for column in ("phase", "seconds", "share", "GFLOP", "GFLOP/s", "of ceiling", "peak MiB"):
            table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
        accounted = 0.0
        for phase, spans in (SPANS_AHEAD if self._sampled_ahead else SPANS).items():
            accounted += self.span_seconds.get(phase, 0.0) / NUM_STEPS * (phase != "ahead")
            for name in (phase, *spans):
                if name in self.span_seconds:
                    table.add_row(*self._cells(name, name != phase, seconds, machine))
        table.add_row("everything else", f"{seconds - accounted:.3f}", f"{1 - accounted / seconds:.1%}", "", "", "", "")
        table.caption = "\n".join(self._caption(machine))
        return table

    @property
    def _sampled_ahead(self) -> bool:
        return "ahead" in self.span_seconds

    @property
    def _sampled(self) -> str:
        """The phase in which sampling runs."""
        return "ahead" if self._sampled_ahead else "rollout"

    def _cells(self, name: str, inside: bool, step_s: float, machine: MachinePeak) -> list[str]:
        seconds = self.span_seconds[name] / NUM_STEPS
        flops = self.step_flops.get(name, 0.0) / NUM_STEPS
        rate = flops / seconds if seconds else 0.0
        speed = [f"{flops / 1e9:.3g}", f"{rate / 1e9:.3g}", f"{rate / machine.flops_per_s:.0%}"] if flops else [""] * 3
        peak = f"{self.peaks[name] / 2**20:.0f}" if name in self.peaks else ""
        return ["  " * inside + name, f"{seconds:.3f}", f"{seconds / step_s:.1%}", *speed, peak]

    def _caption(self, machine: MachinePeak) -> list[str]:
        threads = f"{torch.get_num_threads()} threads" if self._device.type == "cpu" else torch.cuda.get_device_name()
        lines = [
            f"ceilings here ({threads}): {machine.flops_per_s / 1e9:.3g} GFLOP/s in a matrix product, "
            f"{machine.bytes_per_s / 1e9:.3g} GB/s in a copy"
        ]
        if self._sampled_ahead:
            took, waited = (self.span_seconds[name] / NUM_STEPS for name in ("ahead", "rollout"))
            lines.append(
                f"sampling took {took:.3f} s in its own thread (ahead); the step waited {waited:.3f} s for it (rollout)"
            )
        if "environment" in self.span_seconds:
            waited, sampling = self.span_seconds["environment"], self.span_seconds[self._sampled]
            lines.append(
                f"sampling waited {waited / sampling:.1%} of its time for environments; the rest of their work ran "
                "behind decoding"
            )
        floor = self.decode_floor(machine)
        taken = self.span_seconds.get("decode", 0.0)
        if floor and taken:
            lines.append(
                f"decoding takes at least {floor / NUM_STEPS:.3f} s (weights and cache read once per pass, products at "
                f"the ceiling); it took {taken / floor:.1f} times that"
            )
        return lines

    def decode_floor(self, machine: MachinePeak) -> float:
        """Return the minimal seconds of the profiled decoding."""
        return decode_floor(self.loaded, self.decoded, machine)

    @property
    def _model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def decoding_flops(loaded: LoadedModel, counts: RolloutCounts) -> float:
    """Return the FLOPs of the decoded tokens, without prompts."""
    attended = counts.decoded_attended / max(1, counts.decoded_rows)
    return forward_flops(loaded, counts.decoded_rows, attended, counts.decoded_rows)


def decode_floor(loaded: LoadedModel, counts: RolloutCounts, machine: MachinePeak) -> float:
    r"""Return the minimal seconds of decoding, a sum over passes in closed form.

    ``(passes * weight_bytes + attended * cache_bytes) / bytes_per_s + FLOP / flops_per_s``
    """
    parameters = list(loaded.model.parameters())
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    position_bytes = _cache_bytes(loaded.model, parameters[0].element_size())
    moved = counts.decode_steps * weight_bytes + counts.decoded_attended * position_bytes
    return moved / machine.bytes_per_s + decoding_flops(loaded, counts) / machine.flops_per_s


def _cache_bytes(model: PreTrainedModel, item: int) -> int:
    """Return the bytes of keys and values of one position over all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * width * config.num_hidden_layers * item)


def _add(totals: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        totals[name] = totals.get(name, 0.0) + value
