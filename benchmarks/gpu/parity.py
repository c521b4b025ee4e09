"""Every way of decoding and every layout against the model's own forward, and the places where decoding waits.

A way or layout is judged in float32, where a wrong mask or position shows; its error in the stored dtype is recorded.

Left out: servers, and models of other families (``benchmarks/families``).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cases import Findings, Setup, digits

import heliostat
from heliostat.config import ModelSection, RolloutSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.checks.reference_forward import (
    comparison_mode,
    measure_tolerance,
    mixed_contexts,
    reference_log_probs,
    short_error,
)
from heliostat.rollout import DecodeLimits, Engine, SampleRequest, SamplingSettings
from heliostat.rollout.in_process.ways import Trial, WrongWay, ways_of
from heliostat.train.logprobs.gradient_trial import MAX_GAP, GradientTrial
from heliostat.train.logprobs.layout_trial import NAMES, trial_rows
from heliostat.train.logprobs.layouts import Alone, Cached, Layout, Plain, Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.packing import Row
from heliostat.types import Problem, Prompt

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
NOT_OFFERED = "not offered on this device"
SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
NUM_TOKENS = 8


def small(setup: Setup, dtype: Dtype) -> LoadedModel:
    """Return a small random Llama on the device."""
    loaded = load_model(ModelSection(path="tiny", dtype=dtype, settings=SHAPE), 0, setup.device)
    loaded.model.eval()
    return loaded


def request(loaded: LoadedModel, temperature: float = 1.0) -> SampleRequest:
    """Two completions for each of the trial's prompts."""
    prompts = [Prompt(Problem(f"p{n}", "kit", ""), ids) for n, ids in enumerate(mixed_contexts(loaded))]
    return SampleRequest(prompts, 2, SamplingSettings(temperature=temperature), seed=0, policy_step=0)


def decoding_parity(setup: Setup) -> Findings:
    """Try every way of decoding in both dtypes; gaps are in nats, largest and mean over the sampled tokens."""
    rows, faults = [], []
    for dtype in DTYPES:
        loaded = small(setup, dtype)
        trial = Trial.of(loaded, several_turns=True)
        for way in ways_of(loaded, RolloutSection()):
            row: Findings = {"way": way.name, "dtype": dtype}
            rows.append(row)
            try:
                engine = trial.engine(way, DecodeLimits(NUM_TOKENS))
            except WrongWay as error:
                row["verdict"] = "wrong"
                faults.append(f"{dtype}: {error}")
                continue
            if engine is None:
                row["verdict"] = NOT_OFFERED
                continue
            gaps = sampler_gaps(loaded, engine)
            row |= {"verdict": "right", "largest_gap": digits(gaps.max()), "mean_gap": digits(gaps.mean())}
    return {"bound": digits(trial.measure.bound), "ways": rows, "faults": faults}


def sampler_gaps(loaded: LoadedModel, engine: Engine) -> np.ndarray:
    """Return |recorded log-probability - the model's own|, of every sampled token, in the stored dtype."""
    gaps = []
    for group in engine.sample(request(loaded)):
        for completion in group.completions:
            own = reference_log_probs(loaded, group.prompt.context_ids, completion.token_ids, 1.0)
            gaps.append(np.abs(own.numpy() - completion.logp_gen))
    return np.concatenate(gaps)


def layout_parity(setup: Setup) -> Findings:
    """Compare every layout's log-probabilities (nats) and gradient (share of its norm) with whole rows, one by one."""
    found, faults = [], []
    for dtype in DTYPES:
        loaded = small(setup, dtype)
        rows, measure = trial_rows(loaded), measure_tolerance(loaded)
        layouts: list[Layout] = [Alone(), Plain(), Tree(), Cached()]
        if Packed.suits(loaded):
            layouts.append(Packed())
        for layout in layouts:
            name = NAMES[type(layout)]
            row: Findings = {"layout": name, "dtype": dtype}
            found.append(row)
            try:
                with comparison_mode(loaded, measure.gain):
                    row["gap_in_float32"] = digits(log_prob_gap(loaded, layout, rows, measure.temperature))
                with comparison_mode(loaded):
                    row["gradient_gap_in_float32"] = digits(gradient_gap(loaded, layout, rows, measure.temperature))
                row["gap"] = digits(log_prob_gap(loaded, layout, rows, 1.0))
                row["gradient_gap"] = digits(gradient_gap(loaded, layout, rows, 1.0))
            except Exception as error:  # any error of a kernel is a finding, and the other layouts are still tried
                faults.append(f"{dtype}, {name}: {short_error(error)}")
                continue
            right = row["gap_in_float32"] <= measure.bound and row["gradient_gap_in_float32"] <= MAX_GAP
            row["verdict"] = "right" if right else "wrong"
            if not right:
                faults.append(f"{dtype}, {name}: a gap above {measure.bound:.1g} nats or {MAX_GAP} of the gradient")
        if not Packed.suits(loaded):
            found.append({"layout": NAMES[Packed], "dtype": dtype, "verdict": NOT_OFFERED})
    return {"bound": digits(measure.bound), "layouts": found, "faults": faults}


@torch.no_grad()
def log_prob_gap(loaded: LoadedModel, layout: Layout, rows: Sequence[Row], temperature: float) -> float:
    """Return the largest difference from the model's own forward of each text alone, in nats."""
    targets = torch.tensor([token for row in rows for token in row.completion.token_ids], device=loaded.model.device)
    logits = loaded.head.logits(layout.hidden(loaded, rows)).float() / temperature
    logp = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1).cpu()
    own = [reference_log_probs(loaded, row.prompt.context_ids, row.completion.token_ids, temperature) for row in rows]
    return float((logp - torch.cat(own)).abs().max())


def gradient_gap(loaded: LoadedModel, layout: Layout, rows: Sequence[Row], temperature: float) -> float:
    """Return the distance from the gradient of whole rows, relative to its norm."""
    trial = GradientTrial(loaded, rows, temperature)
    own, found = trial.gradient(Alone()), trial.gradient(layout)
    assert own is not None
    assert found is not None
    return float((found - own).norm() / own.norm())


def waits(setup: Setup) -> Findings:
    """Count the calls that wait for the GPU while completions are decoded, by line and per decoding pass."""
    loaded = small(setup, "bfloat16")
    found: Findings = {}
    for way in ways_of(loaded, RolloutSection()):
        engine = way.build(loaded, DecodeLimits(NUM_TOKENS))
        if engine is None:
            continue
        engine.sample(request(loaded))  # first calls allocate
        engine.take_counts()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                engine.sample(request(loaded))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lines = Counter(place(each.filename, each.lineno) for each in caught if "synchroniz" in str(each.message))
        passes = engine.take_counts().decode_steps
        found[way.name] = {
            "passes": passes,
            "waits_per_pass": digits(sum(lines.values()) / max(1, passes)),
            "lines": dict(lines.most_common(12)),
        }
    return found


def place(filename: str, line: int) -> str:
    """Return a line's place below the package or, of another package, its file's name."""
    path, root = Path(filename), Path(heliostat.__file__).parent
    return f"{path.relative_to(root) if path.is_relative_to(root) else path.name}:{line}"
