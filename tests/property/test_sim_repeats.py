"""One seed decides everything: not the process, its hashes, its memory, or how fast it is."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest

from dledger.clock import SystemClock
from jepsen_tests.sim.disturbances import disturbed, tripwires
from jepsen_tests.sim.explorer import Job, run_seed
from jepsen_tests.sim.loop import run_virtual
from jepsen_tests.sim.plan import make_plan
from jepsen_tests.sim.raft_layer import RaftServer
from jepsen_tests.sim.scenario import Layer, Settings, run_plan

# Seed 50 of the broker layer has everything that clients do.
SEEDS: list[tuple[Layer, tuple[int, ...]]] = [("raft", (3, 8, 24)), ("broker", (8, 50))]
SECONDS = 6.0
# The broker asks for its process number; `SimulatedBroker` exchanges it before anybody sees it.
EXCHANGED = "os.getpid by broker/server.py"

ELSEWHERE = """
import json, sys
from contextlib import nullcontext
from jepsen_tests.sim.disturbances import disturbed, tripwires
from jepsen_tests.sim.explorer import Job, run_seed

digests, before = {}, set(sys.modules)
with disturbed() if sys.argv[2] == "disturbed" else nullcontext(), tripwires() as tripped:
    for seed in sys.argv[4:]:
        job = Job(layer=sys.argv[1], seconds=float(sys.argv[3]))
        digests[seed] = run_seed(job, int(seed)).digest
ours = ("broker.", "dledger.", "jepsen_tests.", "nameserver.", "store.")
late = [name for name in set(sys.modules) - before if name.startswith(ours)]
print(json.dumps([digests, tripped, late]))
"""


def elsewhere(layer: Layer, seeds: tuple[int, ...], hash_seed: str, how: str) -> Any:
    command = [sys.executable, "-c", ELSEWHERE, layer, how, str(SECONDS), *map(str, seeds)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=environment, check=True
    )
    digests, tripped, late = json.loads(ended.stdout)
    # Code that a run loads is that of another moment: a checkout may change meanwhile.
    assert late == []
    return {int(seed): digest for seed, digest in digests.items()}, tripped


def test_the_seeds_have_all_features() -> None:
    plans = [make_plan(seed) for layer, seeds in SEEDS if layer == "broker" for seed in seeds]
    assert {name for plan in plans for name in plan.features} == {
        "offsets",
        "transactions",
        "delays",
        "group",
    }


@pytest.mark.parametrize(("layer", "seeds"), SEEDS)
def test_a_seed_decides_everything(layer: Layer, seeds: tuple[int, ...]) -> None:
    """Equal fingerprints of all deliveries and events, in other processes with other hashes."""
    here = {seed: run_seed(Job(layer=layer, seconds=SECONDS), seed).digest for seed in seeds}
    assert len(set(here.values())) == len(seeds)
    calm, tripped = elsewhere(layer, seeds, "0", "calm")
    assert calm == here
    assert [text for text in tripped if not text.startswith(EXCHANGED)] == []
    # The other way round, because what one run leaves in its process must not matter to the next.
    assert elsewhere(layer, seeds[::-1], "4711", "disturbed")[0] == here


class Unseeded(RaftServer):
    """A replica whose chance is the machine's."""

    def _make_node(self, log: Any, random_: random.Random) -> Any:
        return super()._make_node(log, random.Random())


def test_chance_that_is_not_the_seeds_changes_the_digest() -> None:
    plan = make_plan(3, seconds=3.0)
    settings = Settings(server_class=Unseeded)
    assert run_plan(plan, settings).digest != run_plan(plan, settings).digest
    with disturbed():
        assert run_plan(plan).digest == run_plan(plan).digest


def test_the_wires_trip_on_the_product_only() -> None:
    with tripwires() as tripped:
        SystemClock().wall_ms()
        SystemClock().wall_ms()
        random.random()
    assert [text.split(":")[0] for text in tripped] == ["time.time_ns by dledger/clock.py"]


def test_sets_of_tasks_have_an_order() -> None:
    async def main() -> None:
        tasks = [asyncio.ensure_future(asyncio.sleep(0)) for _ in range(5)]
        assert list(set(tasks)) == tasks
        await asyncio.gather(*tasks)

    run_virtual(lambda _loop: main())
