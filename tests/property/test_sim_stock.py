"""pysyncobj as it comes loses entries under nothing but cuts and compaction (K4); ours does not."""

from __future__ import annotations

import pytest

from jepsen_tests.sim.controls import CONTROLS
from jepsen_tests.sim.plan import Plan
from jepsen_tests.sim.scenario import Result, Settings, run_plan

CUTS_AND_COMPACTION = {
    "isolate-leader": 2.0,
    "pile-up": 2.0,
    "compact": 3.0,
    "slow-link": 1.0,
    "narrow-link": 1.0,
    "heal": 1.5,
}
SEEDS = (12, *range(8, 12), *range(13, 20))  # the quickest known one first


def run(seed: int, settings: Settings) -> Result:
    plan = Plan(
        seed=seed,
        replicas=3,
        seconds=12.0,
        weights=CUTS_AND_COMPACTION,
        clients=2,
        rate=20.0,
        body_bytes=300,
        delay_s=0.005,
        jitter_s=0.005,
    )
    return run_plan(plan, settings)


def test_the_stock_library_is_found_guilty_without_any_crash() -> None:
    stock = Settings()
    CONTROLS["stock-pysyncobj"].plant(stock)
    for seed in SEEDS:
        found = {violation.rule for violation in run(seed, stock).violations}
        if {"log-agreement", "C1"} <= found:
            break
    else:
        pytest.fail(f"survived seeds {SEEDS}")
    ours = run(seed, Settings())
    assert ours.is_valid, ours.violations
    assert ours.acknowledged > 50


def test_a_seed_of_the_stock_library_repeats() -> None:
    stock = Settings()
    CONTROLS["stock-pysyncobj"].plant(stock)
    assert run(3, stock).digest == run(3, stock).digest
