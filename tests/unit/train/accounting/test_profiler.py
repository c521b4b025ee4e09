"""The profile: its parts add up, its operations are the ledger's, and decoding's floor is the formula."""

import io
import re
import subprocess
import sys
from time import sleep

import pytest
import torch
from rich.console import Console

from heliostat.models import forward_flops
from heliostat.rollout import RolloutCounts
from heliostat.spans import span
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.accounting.machine_peak import MachinePeak, measure_machine_peak
from heliostat.train.accounting.profiler import FIRST_STEP, NUM_STEPS, Profile
from heliostat.train.update.counts import UpdateCounts
from tests.support.nano import make_nano

COUNTS = RolloutCounts(prefills=2, prompt_tokens=10, prompt_attended=30, decode_steps=3, decoded_rows=12)


def steps(profile, num):
    for _ in range(num):
        with profile.step():
            with profile.phase("rollout"), span("decode"):
                pass
            with profile.phase("update"), span("forward"):
                pass
            profile.charge_rollout("rollout", profile.loaded, COUNTS)
            profile.charge_update("update", profile.loaded, UpdateCounts(4, 10, 20, 30, 100))
            profile.charge_update("update", profile.loaded, UpdateCounts(4, 10, 20, 30, 100), with_gradient=False)


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr("heliostat.train.accounting.profiler.measure_machine_peak", lambda *_: MachinePeak(1e12, 1e11))
    tables = []
    profile = Profile(loaded=make_nano(), show=tables.append)
    steps(profile, FIRST_STEP + NUM_STEPS + 1)
    return profile, tables


def test_it_speaks_once_and_watches_only_its_steps(shown):
    profile, tables = shown
    assert len(tables) == 1
    assert profile.num_seen == FIRST_STEP + NUM_STEPS + 1
    assert set(profile.span_seconds) == {"rollout", "decode", "update", "forward"}
    assert profile.span_seconds["rollout"] + profile.span_seconds["update"] <= profile.step_seconds


def test_its_operations_are_the_ledgers(shown):
    profile, _ = shown
    plain = Ledger()
    plain.charge_rollout("rollout", profile.loaded, COUNTS)
    plain.charge_update("update", profile.loaded, UpdateCounts(4, 10, 20, 30, 100))
    trained = plain.flops["update"]
    plain.charge_update("update", profile.loaded, UpdateCounts(4, 10, 20, 30, 100), with_gradient=False)
    assert profile.step_flops["rollout"] == pytest.approx(NUM_STEPS * plain.flops["rollout"])
    assert profile.step_flops["update"] == pytest.approx(NUM_STEPS * plain.flops["update"])
    assert profile.step_flops["score"] == pytest.approx(NUM_STEPS * trained / 3)
    assert profile.step_flops["backward"] == pytest.approx(2 * profile.step_flops["forward"])
    num_steps = FIRST_STEP + NUM_STEPS + 1
    assert profile.flops["rollout"] == pytest.approx(num_steps * plain.flops["rollout"])


def test_the_floor_of_decoding(shown):
    profile, _ = shown
    config = profile.loaded.model.config
    weights = sum(p.numel() for p in profile.loaded.model.parameters()) * 4
    position = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * 4
    profile.decoded = RolloutCounts(decode_steps=3, decoded_rows=12, decoded_attended=100)
    moved = 3 * weights + 100 * position
    only_reading = profile.decode_floor(MachinePeak(float("inf"), 1e9))
    assert only_reading == pytest.approx(moved / 1e9)
    only_products = profile.decode_floor(MachinePeak(1e9, float("inf")))
    assert only_products == pytest.approx(forward_flops(profile.loaded, 12, 100 / 12, 12) / 1e9)


def test_the_table_names_every_phase_that_happened(shown):
    _, (table,) = shown
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    for word in ("rollout", "decode", "update", "forward", "everything else", "GFLOP/s in a matrix product"):
        assert word in text
    assert "prefill" not in text


def test_sampling_ahead_is_shown_beside_the_step_that_waits_for_it(monkeypatch):
    monkeypatch.setattr("heliostat.train.accounting.profiler.measure_machine_peak", lambda *_: MachinePeak(1e12, 1e11))
    tables = []
    profile = Profile(loaded=make_nano(), show=tables.append)
    for _ in range(FIRST_STEP + NUM_STEPS):
        with profile.step():
            with profile.phase("rollout"):
                pass
            profile.charge_rollout("rollout", profile.loaded, COUNTS)
            profile.record_async_sampling(1000.0, {"prefill": 250.0, "decode": 700.0, "score": 40.0})
    plain = Ledger()
    plain.charge_rollout("rollout", profile.loaded, COUNTS)
    assert profile.step_flops["ahead"] == pytest.approx(NUM_STEPS * plain.flops["rollout"])
    assert "rollout" not in profile.step_flops
    console = Console(width=120, file=io.StringIO())
    console.print(*tables)
    lines = console.file.getvalue().splitlines()
    (everything_else,) = (line for line in lines if "everything else" in line)
    assert "-" not in everything_else  # a thousand seconds outside the step do not count
    assert any("ahead" in line and "1000.000" in line for line in lines)
    assert "sampling took 1000.000 s in its own thread" in console.file.getvalue()
    assert not any("score" in line for line in lines)


def waiting(monkeypatch, spans):
    """The text of a profile whose steps sampled ahead with these spans."""
    monkeypatch.setattr("heliostat.train.accounting.profiler.measure_machine_peak", lambda *_: MachinePeak(1e12, 1e11))
    tables = []
    profile = Profile(loaded=make_nano(), show=tables.append)
    for _ in range(FIRST_STEP + NUM_STEPS):
        with profile.step():
            with profile.phase("rollout"):
                pass
            profile.record_async_sampling(1000.0, spans)
    console = Console(width=120, file=io.StringIO())
    console.print(*tables)
    return console.file.getvalue()


def test_the_wait_for_environments_is_shown_with_its_share(monkeypatch):
    text = waiting(monkeypatch, {"decode": 700.0, "environment": 250.0})
    assert "sampling waited 25.0% of its time for environments" in text
    assert any(line.split()[1:4:2] == ["environment", "250.000"] for line in text.splitlines())
    assert "environment" not in waiting(monkeypatch, {"decode": 700.0})


def test_the_wait_is_a_part_of_the_rollout(monkeypatch):
    monkeypatch.setattr("heliostat.train.accounting.profiler.measure_machine_peak", lambda *_: MachinePeak(1e12, 1e11))
    tables = []
    profile = Profile(loaded=make_nano(), show=tables.append)
    for _ in range(FIRST_STEP + NUM_STEPS):
        with profile.step(), profile.phase("rollout"), span("environment"):
            sleep(0.01)
    assert 0.03 <= profile.span_seconds["environment"] <= profile.span_seconds["rollout"]
    console = Console(width=120, file=io.StringIO())
    console.print(*tables)
    (share,) = re.findall(r"sampling waited (\S+)% of its time", console.file.getvalue())
    assert 50 < float(share) <= 100


def test_ceilings_are_positive():
    ceilings = measure_machine_peak(torch.device("cpu"), torch.float32, size=64, copy_bytes=2**16)
    assert ceilings.flops_per_s > 0
    assert ceilings.bytes_per_s > 0


PEAK_OF_64_MB = """
import torch
from heliostat.train.accounting.machine_peak import peak_bytes, reset_peak_memory

device = torch.device("cpu")
reset_peak_memory(device)
before = peak_bytes(device)
held = torch.ones(2**24)
print(peak_bytes(device) - before)
"""


def test_an_allocation_raises_the_peak():
    # in a process of its own: from a large one, the system may take idle pages back meanwhile
    grown = subprocess.run([sys.executable, "-c", PEAK_OF_64_MB], check=True, capture_output=True, text=True)
    assert int(grown.stdout) >= 2**26 * 0.9
