"""One run from seed to verdict."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from dledger.raft.engine import Engine
from jepsen_tests.history import Record
from jepsen_tests.sim.broker_layer import BrokerClients, BrokerServer
from jepsen_tests.sim.faults import Chaos
from jepsen_tests.sim.loop import SimulationStuckError, VirtualLoop, run_virtual
from jepsen_tests.sim.operating import Operator
from jepsen_tests.sim.oracle import Violation
from jepsen_tests.sim.plan import Plan
from jepsen_tests.sim.raft_layer import RaftClients, RaftServer
from jepsen_tests.sim.verdict import judge
from jepsen_tests.sim.world import (
    CONVERGE_BOUND_S,
    PROGRESS_BOUND_S,
    LivenessError,
    World,
)

MESSAGE_BYTES = 400  # of several messages in one delivery, without entries
Layer = Literal["raft", "broker"]


@dataclass(kw_only=True)
class Settings:
    """What is run, and what is planted in it: faults for positive controls only."""

    layer: Layer = "raft"
    engine_class: type[Engine] = Engine
    server_class: type[Any] | None = None
    clients_class: type[Any] | None = None
    ignores_sync: bool = False
    surroundings: Callable[[], AbstractContextManager[None]] = nullcontext
    operator_class: type[Operator] = Operator
    write_trace: Callable[[str], None] | None = None


@dataclass(kw_only=True)
class Result:
    """How a run ended."""

    seed: int
    layer: str
    violations: list[Violation] = field(default_factory=list)
    virtual_s: float = 0.0
    real_s: float = 0.0
    digest: str = ""
    acknowledged: int = 0
    operations: int = 0
    elections: int = 0
    installations: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    held_back: int = 0
    delivered: int = 0
    leader_s: float = 0.0  # from healing to a leader that serves
    history: list[Record] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations


def run_plan(plan: Plan, settings: Settings | None = None) -> Result:
    """Runs one plan on a virtual loop of its own. Equal plans give equal results."""
    settings = settings or Settings()
    result = Result(seed=plan.seed, layer=settings.layer)
    begin = time.process_time()
    was_enabled, disabled_before = gc.isenabled(), logging.root.manager.disable
    gc.disable()  # collection would run at moments that no seed decides
    logging.disable(logging.CRITICAL)
    try:
        with settings.surroundings():
            run_virtual(lambda loop: _main(loop, plan, settings, result))
    except SimulationStuckError as error:
        result.violations.append(Violation("stuck", 0.0, str(error)))
    finally:
        logging.disable(disabled_before)
        if was_enabled:
            gc.enable()
    result.real_s = time.process_time() - begin
    return result


async def _main(loop: VirtualLoop, plan: Plan, settings: Settings, result: Result) -> None:
    if settings.layer == "broker":
        server_class, clients_class = BrokerServer, BrokerClients
    else:
        server_class, clients_class = RaftServer, RaftClients  # type: ignore[assignment]
    world = World(
        loop,
        plan,
        settings.server_class or server_class,
        engine_class=settings.engine_class,
        ignores_sync=settings.ignores_sync,
        write_trace=settings.write_trace,
    )
    clients = (settings.clients_class or clients_class)(world)
    observer = asyncio.ensure_future(world.observe())
    try:
        await _phases(world, clients, settings)
    except LivenessError as error:
        world.oracle.violated("liveness", str(error))
    except SimulationStuckError:
        raise
    except Exception as error:  # a run in which the harness or a client breaks proves nothing
        where = traceback.format_exc().strip().splitlines()[-3].strip()
        world.oracle.violated("exception", f"{type(error).__name__}: {error} ({where})")
    finally:
        observer.cancel()
        for host in world.hosts.values():
            if host.is_running:
                host.app.close_files()
                host.kill()
        close = getattr(clients, "close_files", None)
        if close is not None:
            close()
    _fill(result, world, clients)


async def _phases(world: World, clients: Any, settings: Settings) -> None:
    loop, plan = world.loop, world.plan
    for host in world.hosts.values():
        world.start(host)
    prepare = getattr(clients, "prepare", None)
    await world.wait("a first leader", world.leader, world.leader_bound_s())
    if prepare is not None:
        await prepare()
    world.phase("load")
    until = loop.time() + plan.seconds
    chaos = Chaos(world, Random(f"chaos/{plan.seed}"))
    breaking = asyncio.ensure_future(chaos.run(until))
    operator = settings.operator_class(world, Random(f"operator/{plan.seed}"))
    is_operated = (
        plan.changes_gap_s > 0
        and settings.layer == "raft"
        and issubclass(settings.server_class or RaftServer, RaftServer)
    )
    changing = asyncio.ensure_future(operator.run(until)) if is_operated else None
    await clients.run(until)
    await breaking
    if changing is not None:
        await changing
    world.phase("heal")
    world.heal()
    healed = loop.time()
    await world.wait("a leader that serves", world.leader, world.leader_bound_s())
    world.leader_s = loop.time() - healed  # type: ignore[attr-defined]
    await clients.prove_progress(loop.time() + PROGRESS_BOUND_S)
    if clients.progress_at < healed:
        raise LivenessError(f"nothing acknowledged within {PROGRESS_BOUND_S} s after healing")
    settle = getattr(clients, "settle", None)
    if settle is not None:
        await settle()
    if is_operated:
        await operator.finish()
    await world.wait("all replicas are equal", world.converged, CONVERGE_BOUND_S)
    if settings.layer == "raft" and not plan.weights and not is_operated:
        check_traffic(world)
    world.phase("final")
    final = clients.final_reads()
    if final is not None:
        await final


def check_traffic(world: World) -> None:
    """Without faults every entry goes once to every follower."""
    log_bytes = max(host.app.log.offset_end for host in world.hosts.values())
    for pair, (deliveries, size_bytes) in world.network.traffic.items():
        bound = 1.1 * log_bytes + MESSAGE_BYTES * deliveries
        if size_bytes > bound:
            world.oracle.violated(
                "resent", f"{pair} carried {size_bytes} bytes for a log of {log_bytes}"
            )


def _fill(result: Result, world: World, clients: Any) -> None:
    loop = world.loop
    for problem in loop.problems:
        world.oracle.violated("unhandled", problem)
    world.add_faults()
    result.history = world.history
    result.virtual_s = loop.time() - world.start_s
    result.acknowledged = clients.acknowledged
    result.operations = sum(hasattr(record, "status") for record in world.history)
    result.elections = world.oracle.elections
    result.installations = world.oracle.installations
    result.faults = dict(sorted(world.trace.counts.items()))
    result.held_back = world.network.held_back
    result.delivered = world.network.delivered
    result.leader_s = getattr(world, "leader_s", 0.0)
    result.violations = world.oracle.violations + judge(
        world.history,
        nodes=[host.name for host in world.healthy()],
        start_s=world.start_s,
        finished=not world.oracle.violations,
    )
    for violation in result.violations:
        world.trace.note("VIOLATION", f"{violation.rule}: {violation.text}")
    result.digest = world.trace.digest(world.network.digest.digest())
