"""F14: two faults at once, and a dance that makes one majority give way to another."""

from __future__ import annotations

import time

from dledger.errors import DLedgerError
from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.nemeses.base import LEADER, Bench, Injection, Nemesis
from jepsen_tests.nemeses.disks import PowerNemesis
from jepsen_tests.nemeses.links import LinkNemesis
from jepsen_tests.nemeses.partitions import IsolateNemesis, TopologyNemesis, both_ways
from jepsen_tests.nemeses.processes import KillNemesis, PauseNemesis

_SECOND_AFTER_S = 0.7
_PILE_UP_S = 1.0


class MixNemesis(Nemesis):
    """F14: a second fault while a first one holds; every third time the dance.

    The dance: the leader is cut off from its peers while clients still reach it, so that writes
    pile up in a log that nobody confirms; a new leader takes writes with one other replica; that
    new leader loses power (where disks allow, else it is killed), and the old one is let back: now
    the old leader and the remaining replica are a majority, and only the latter knows what was
    acknowledged.
    """

    name = "F14"
    title = "two faults at once; the dance of majorities"
    targets = (LEADER,)
    needs_images = True
    hold_s = (3.0, 5.0)

    def __init__(self) -> None:
        self._turn = 0

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs disks of our own."""
        return capabilities.loop

    def begin(self, bench: Bench) -> Injection:
        """Begins a mix or the dance."""
        self._turn += 1
        if self._turn % 3 == 1:
            return self._begin_dance(bench)
        kinds: list[type[Nemesis]] = [
            IsolateNemesis,
            TopologyNemesis,
            KillNemesis,
            PauseNemesis,
            LinkNemesis,
            PowerNemesis,
        ]
        first, second = (kind() for kind in bench.chance.sample(kinds, 2))
        parts = [(first, first.begin(bench))]
        time.sleep(_SECOND_AFTER_S)
        try:
            parts.append((second, second.begin(bench)))
        except DLedgerError:
            # No leader to aim at, say: the first one alone will have to do.
            parts[0][1].details["alone"] = True
        return Injection(
            " + ".join(f"{n.name} {i.variant}" for n, i in parts),
            sorted({target for _, i in parts for target in i.targets}),
            parts[0][1].group,
            {"parts": parts},
        )

    def end(self, bench: Bench, injection: Injection) -> None:
        """Ends all parts, the newest first."""
        if "dance" in injection.details:
            self._end_dance(bench, injection)
            return
        parts = injection.details.pop("parts")
        for nemesis, part in reversed(parts):
            nemesis.end(bench, part)
            injection.proof[nemesis.name] = {"bit": part.bit, **part.proof}
        for replica in bench.cluster.replicas:
            bench.cluster.start(replica)
        injection.bit = all(part.bit for _, part in parts)

    # --- the dance --------------------------------------------------------------------------------

    def _begin_dance(self, bench: Bench) -> Injection:
        group = bench.group()
        old = bench.leader(group)
        seen = bench.monitor.current(group)
        peers = [member for member in bench.members(group) if member != old]
        injection = Injection("dance of majorities", [old], group, {"dance": old})
        injection.details["droppedBefore"] = bench.network.dropped()
        injection.details["token"] = bench.cuts.add(both_ways([old], peers))
        term = seen.term if seen is not None else 0
        new = bench.cluster.wait_leader_change(group, term, 5.0)
        injection.details["new"] = new.id if new is not None else None
        time.sleep(_PILE_UP_S)
        return injection

    def _end_dance(self, bench: Bench, injection: Injection) -> None:
        details = injection.details
        old, new = details.pop("dance"), details.pop("new")
        dropped = bench.network.dropped() - details.pop("droppedBefore")
        injection.proof = {"packetsDropped": dropped, "newLeader": new}
        if new is None:
            bench.cuts.remove(details.pop("token"))
            injection.bit = False
            return
        injection.targets.append(new)
        power = PowerNemesis()
        loss = _take_power(bench, power, new, injection.group)
        bench.cuts.remove(details.pop("token"))
        third = bench.cluster.wait_leader_change(injection.group, 0, 6.0)
        injection.proof |= loss.proof
        injection.proof["thenLed"] = third.id if third is not None else None
        injection.proof["oldLeader"] = old
        power.end(bench, loss)
        injection.bit = dropped > 0 and loss.bit is True


def _take_power(bench: Bench, power: PowerNemesis, replica: str, group: str) -> Injection:
    return power.begin_on(bench, [replica], Injection(f"power loss of {replica}", [], group))
