"""W1, the log, straight on the wire: any replica is asked for anything, leaders and others alike.

Appends to followers go through their forwarding; lengths are read with the leader's barrier, by way
of any replica; pulls show what that very replica has applied.
"""

from __future__ import annotations

import asyncio
import random

from dledger.errors import DLedgerError
from jepsen_tests.history import Append, Read, queue_name
from jepsen_tests.workloads.bodies import body_of
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of
from jepsen_tests.workloads.wire import Wire

PULL_COUNT = 32
_LENGTH_SHARE = 0.35
_STAY = 0.9
_REST_S = 0.02


async def run_log_wire(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop."""
    wire = Wire(plan.replicas, group=plan.group, timeout_s=plan.timeout_s)
    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(plan.processes):
                chance = random.Random(f"{plan.seed}-wire-{number}")
                pacer = Pacer(plan.rate / plan.processes, chance, stopping)
                tasks.create_task(_WireProcess(plan, recorder, wire, chance).run(pacer))
    finally:
        await wire.close()


class _WireProcess:
    def __init__(
        self, plan: WorkerPlan, recorder: Recorder, wire: Wire, chance: random.Random
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._wire = wire
        self._chance = chance
        self._process = Process(recorder)
        self._node = chance.choice(sorted(plan.replicas))
        self._forward = chance.random() < 0.5
        self._positions: dict[tuple[str, int], int] = {}
        self._lost: dict[str, int] = {}

    async def run(self, pacer: Pacer) -> None:
        while await pacer.turn():
            if self._chance.random() > _STAY:
                self._choose_node()
            broker = self._node.rpartition("-")[0]
            queue_id = self._chance.randrange(self._plan.queue_count)
            kind = self._chance.random()
            if kind < self._plan.append_share:
                action = self._append(broker, queue_id)
            elif self._chance.random() < _LENGTH_SHARE:
                action = self._length(broker, queue_id)
            else:
                action = self._read(broker, queue_id)
            if not await action:
                self._choose_node()
                await pacer.rest(_REST_S)

    def _choose_node(self) -> None:
        self._node = self._chance.choice(sorted(self._plan.replicas))
        self._forward = self._chance.random() < 0.5

    async def _append(self, broker: str, queue_id: int) -> bool:
        plan, process = self._plan, self._process
        value = process.new_value()
        record = Append(
            process=process.number,
            queue=queue_name(plan.topic, broker, queue_id),
            value=value,
            inv=now_ns(),
            ret=0,
            status="ok",
            node=self._node,
        )
        try:
            body = body_of(value, plan.body_bytes)
            offset, _ = await self._wire.send(
                self._node, broker, plan.topic, queue_id, body, forward=self._forward
            )
            record.ret = now_ns()
            record.offset = offset
        except DLedgerError as error:
            record.ret = now_ns()
            record.status, record.error = status_of(error), short(error)
        self._recorder.note("append", record.status, record)
        if record.status == "info":
            process.crashed()
        return record.status == "ok"

    async def _length(self, broker: str, queue_id: int) -> bool:
        record = self._read_record(broker, queue_id, 0, 0)
        try:
            record.end = await self._wire.length(self._node, self._plan.topic, queue_id)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        return self._note("length", record)

    async def _read(self, broker: str, queue_id: int) -> bool:
        key = (broker, queue_id)
        lost = self._wire.connections_lost(self._node)
        if lost != self._lost.setdefault(self._node, lost):
            # A replica that has restarted may know less for a moment: that is another session.
            self._lost[self._node] = lost
            self._process.crashed()
        start = self._positions.get(key, 0)
        if start and self._chance.random() < 0.1:
            start = self._chance.randrange(start)
        record = self._read_record(broker, queue_id, start, PULL_COUNT)
        record.eventual = True
        try:
            found = await self._wire.pull(self._node, self._plan.topic, queue_id, start, PULL_COUNT)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        else:
            record.values = found.values
            if found.offsets or found.offset_max != start:
                # Else a replica that is behind names the position asked for as the end.
                record.end = found.offset_max
            if found.offsets:
                first = record.first = found.offsets[0]
                if found.offsets != list(range(first, first + len(found.offsets))):
                    record.offsets = found.offsets
                self._positions[key] = max(self._positions.get(key, 0), found.offsets[-1] + 1)
            elif start < found.offset_min:
                # Dropped by retention: read on where the queue begins now.
                record.out_of_range, record.low = True, found.offset_min
                self._positions[key] = max(self._positions.get(key, 0), found.offset_min)
        return self._note("read", record)

    def _read_record(self, broker: str, queue_id: int, start: int, count: int) -> Read:
        return Read(
            process=self._process.number,
            queue=queue_name(self._plan.topic, broker, queue_id),
            inv=now_ns(),
            ret=0,
            status="ok",
            start=start,
            max=count,
            node=self._node,
        )

    def _note(self, kind: str, record: Read) -> bool:
        record.ret = now_ns()
        self._recorder.note(kind, record.status, record)
        if record.status == "info":
            self._process.crashed()
        return record.status == "ok"
