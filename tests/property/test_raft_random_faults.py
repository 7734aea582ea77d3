"""Random crashes, power cuts and partitions against real nodes on virtual time.

Each seed decides everything. What was acknowledged must be in every replica's log at the end, in
the order of acknowledgement (one client, one proposal at a time); and after the faults end the
group must make progress within a bound.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dledger.errors import DLedgerError
from dledger.raft.engine import Engine
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual

SECONDS = 12.0


KINDS = ["crash", "power", "isolate", "one-way", "heal", "leader", "all"]


async def faults(
    group: RaftGroup, chance: random.Random, until: float, kinds: list[str] = KINDS
) -> None:
    """Orders one fault after another; never more than a minority is down at a time."""
    while group.loop.time() < until:
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        fault = chance.choice(kinds)
        leader = group.leader()
        victim = chance.choice(sorted(group.nodes))
        if fault == "leader" and leader is not None:
            victim, fault = leader.replica_id, "power"
        if fault in ("crash", "power"):
            group.crash(victim, power_loss=fault == "power")
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            restart(group, [victim], lost=fault == "power")
            await group.start([victim])
        elif fault == "all" and chance.random() < 0.3:
            for replica in group.ids:
                group.crash(replica, power_loss=True)
            restart(group, group.ids, lost=True)
            await group.start()
        elif fault == "isolate":
            group.network.isolate(victim)
        elif fault == "one-way":
            others = [replica for replica in group.ids if replica != victim]
            group.network.cut(victim, chance.choice(others))
        else:
            group.network.heal()


def restart(group: RaftGroup, ids: list[str], *, lost: bool) -> None:
    """After a power cut the state is rebuilt from the log."""
    if lost:
        for replica in ids:
            group.machines[replica].applied.clear()
            group.machines[replica].applied_index = 0


async def produce(
    group: RaftGroup, acknowledged: list[bytes], until: float, every_s: float = 0.003
) -> None:
    number = 0
    while group.loop.time() < until:
        leader = group.leader()
        if leader is not None:
            body = b"\x10%d" % number
            number += 1
            try:
                await asyncio.wait_for(leader.submit(body), 1.0)
                acknowledged.append(body)
            except (DLedgerError, TimeoutError):
                pass
        await asyncio.sleep(every_s)


def check(group: RaftGroup, acknowledged: list[bytes]) -> None:
    assert not group.fatal, group.fatal
    bodies = [body for _, _, body in group.machines[group.ids[0]].applied]
    position = {body: at for at, body in enumerate(bodies)}
    assert len(position) == len(bodies), "an entry was applied twice"
    missing = [body for body in acknowledged if body not in position]
    assert not missing, f"{len(missing)} acknowledged entries are lost, first {missing[:3]!r}"
    places = [position[body] for body in acknowledged]
    assert places == sorted(places), "acknowledged entries changed their order"


async def scenario(seed: int, engine_class: type[Engine], **settings: Any) -> int:
    chance = random.Random(seed)
    group = RaftGroup(
        chance.choice([3, 3, 5]),
        seed,
        engine_class=engine_class,
        sync_delay_s=chance.choice([0.0005, 0.004, 0.03]),
        delay_s=chance.choice([0.0005, 0.005]),
        **settings,
    )
    await group.start()
    acknowledged: list[bytes] = []
    until = group.loop.time() + SECONDS
    producers = [produce(group, acknowledged, until)]
    await asyncio.gather(faults(group, chance, until), *producers)
    group.network.heal()
    await group.put(b"alive", timeout_s=5.0)  # liveness: progress within a bound
    await group.converged(10.0)
    check(group, acknowledged)
    await group.stop()
    return len(acknowledged)


@pytest.mark.parametrize("seed", range(16))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    assert run_virtual(scenario(seed, Engine)) > 20


class TruncatesOnEveryAppend(Engine):
    """Rule (b) removed: what an append repeats is cut and written again."""

    def _entries_to_write(self, entries: Any) -> Any:
        return entries


class ConfirmsBeforeDurable(Engine):
    """Confirms what is only written, as an engine without fsync does."""

    def _confirm(self) -> None:
        ack = self._ack
        if ack is not None and self._SyncObj__raftLeader == ack["node"]:
            self._reply(ack["node"], ack, next_index=self._verified + 1, success=True)

    def _on_append(self, node: Any, message: Any) -> None:
        super()._on_append(node, message)
        self._confirm()


@pytest.mark.parametrize("broken", [TruncatesOnEveryAppend, ConfirmsBeforeDurable])
def test_the_check_finds_a_planted_fault(broken: type[Engine]) -> None:
    """A check that cannot fail shows nothing."""
    for seed in range(60):
        try:
            run_virtual(scenario(seed, broken))
        except AssertionError:
            return
    pytest.fail(f"{broken.__name__} survived 60 seeds")
