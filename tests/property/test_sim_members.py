"""Changes of the group in the simulation, and that doing them the unsafe way is found."""

from __future__ import annotations

import dataclasses

from dledger.raft.node import RaftNode
from dledger.raft.protocols import Identity
from jepsen_tests.sim.host import Host
from jepsen_tests.sim.operating import Operator
from jepsen_tests.sim.plan import make_plan
from jepsen_tests.sim.raft_layer import RaftServer
from jepsen_tests.sim.scenario import Result, Settings, run_plan


def run(seed: int, settings: Settings) -> Result:
    plan = make_plan(seed, replicas=3, seconds=15.0)
    return run_plan(dataclasses.replace(plan, changes_gap_s=1.0), settings)


def test_replicas_leave_and_come_back_under_faults() -> None:
    rebuilt = 0
    for seed in range(4):
        result = run(seed, Settings())
        assert result.is_valid, (seed, result.violations[:3])
        rebuilt += result.faults["rebuild"]
    assert rebuilt >= 8


class AdmitsAnyone(RaftNode):
    """Does not look at who a peer says it is."""

    def admit(self, peer: Identity) -> None:
        return


class TrustingServer(RaftServer):
    """Runs an `AdmitsAnyone`."""

    node_class = AdmitsAnyone


class KeepsTheIdentity(Operator):
    """The old way: an emptied replica comes back under its name, and votes and counts at once."""

    async def rebuild(self, host: Host, until: float, stay_away_s: float = 0.0) -> None:
        self._world.trace.fault("rebuild", f"{host.name}, as who it was")
        self.wipe(host)
        self._world.start(host)


def test_a_rebuild_that_keeps_the_identity_is_found() -> None:
    found: set[str] = set()
    for seed in range(20):
        settings = Settings(server_class=TrustingServer, operator_class=KeepsTheIdentity)
        found |= {violation.rule for violation in run(seed, settings).violations}
        if found & {"leader-complete", "majority-durable", "log-agreement"}:
            return
    raise AssertionError(f"not found by 20 seeds: {found}")
