"""A fixed small part of the simulation: seeds, regressions and controls.

Many more seeds: `dledger jepsen sim --seeds 20000 --jobs 2`.
"""

from __future__ import annotations

from typing import Any

import pytest

from jepsen_tests.sim.control_table import stated
from jepsen_tests.sim.controls import CONTROLS
from jepsen_tests.sim.explorer import Job, run_seed
from jepsen_tests.sim.plan import aim, make_plan
from jepsen_tests.sim.regressions import Regression, load_regressions
from jepsen_tests.sim.scenario import Layer, Result, Settings, run_plan

CHUNK = 10


def story(result: Result) -> str:
    lines = [f"{found.rule} at {found.at_s} s: {found.text}" for found in result.violations]
    again = f"dledger jepsen sim --layer {result.layer} --first {result.seed} --trace"
    return "\n".join([f"seed {result.seed} ({again})", *lines])


def run_chunk(layer: Layer, first: int) -> list[Result]:
    results = [run_seed(Job(layer=layer), seed) for seed in range(first, first + CHUNK)]
    for result in results:
        assert result.is_valid, story(result)
    return results


@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_seeds_of_the_raft_layer(first: int) -> None:
    results = run_chunk("raft", first)
    assert sum(result.acknowledged for result in results) > 200
    assert sum(result.elections for result in results) > CHUNK, "no fault changed a leader"


@pytest.mark.parametrize("first", range(0, 40, CHUNK))
def test_seeds_of_the_broker_layer(first: int) -> None:
    results = run_chunk("broker", first)
    assert sum(result.acknowledged for result in results) > 200
    assert sum(result.held_back for result in results) > 0, "no cut held anything back"


@pytest.mark.parametrize("regression", load_regressions(), ids=lambda found: found.name)
def test_what_once_failed(regression: Regression) -> None:
    result = run_plan(regression.plan, Settings(layer=regression.layer))
    assert result.is_valid, f"{regression.why}\n{story(result)}"


# `make check-controls` runs the others too, and all from seed 0.
QUICK_S, QUICK_SEEDS = 8.0, 25
MORE_SEEDS = 100  # a change of the code moves what a seed does


def quick_controls() -> list[str]:
    return [
        name
        for name, (seeds, cpu_s) in stated().items()
        if cpu_s <= QUICK_S and seeds <= QUICK_SEEDS
    ]


def test_the_document_tells_of_every_control() -> None:
    assert set(stated()) == set(CONTROLS)
    assert len(quick_controls()) > len(CONTROLS) // 2


@pytest.mark.parametrize("name", quick_controls())
def test_a_planted_fault_is_found(name: str) -> None:
    seeds, _ = stated()[name]
    layer = CONTROLS[name].layer
    for seed in range(seeds - 1, seeds + MORE_SEEDS):
        if not run_seed(Job(layer=layer, control=name), seed).is_valid:
            assert run_seed(Job(layer=layer), seed).is_valid
            return
    pytest.fail(f"{name} ({CONTROLS[name].text}) survived seeds {seeds - 1} to {seed}")


def test_a_seed_keeps_its_faults_beside_the_one_that_is_aimed() -> None:
    plans = [make_plan(seed) for seed in range(400)]
    aimed = [aim(plan) for plan in plans]
    hit = [(one, two) for one, two in zip(plans, aimed, strict=True) if one != two]
    assert 60 < len(hit) < 140
    for plan, other in hit:
        assert other.weights == {**plan.weights, "doubt": sum(plan.weights.values())}
        assert other.append_bytes_max <= 20_000
    assert all(not plan.weights for plan in aimed if not make_plan(plan.seed).weights), "no fault"


def test_a_plan_is_swarm_like() -> None:
    plans = [make_plan(seed) for seed in range(200)]
    mixes: Any = {tuple(sorted(plan.weights)) for plan in plans}
    assert len(mixes) > 150
    assert any(not plan.weights for plan in plans)
    assert {plan.replicas for plan in plans} == {3, 5}
