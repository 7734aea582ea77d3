"""The last act of every run: every queue read in full from every replica."""

from __future__ import annotations

import asyncio

from dledger.errors import DLedgerError
from jepsen_tests.history import Read, queue_name
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short
from jepsen_tests.workloads.wire import Wire

_PULL_COUNT = 2000
_CATCH_UP_S = 30.0
_PAUSE_S = 0.1


async def run_final_read(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Reads everything once; a replica that cannot be read gets a read of status `info`."""
    wire = Wire(plan.replicas, group=plan.group, timeout_s=5.0)
    try:
        for node in sorted(plan.replicas):
            for queue_id in range(plan.queue_count):
                await _read_queue(plan, recorder, wire, node, queue_id)
    finally:
        await wire.close()


async def _read_queue(
    plan: WorkerPlan, recorder: Recorder, wire: Wire, node: str, queue_id: int
) -> None:
    broker = node.rpartition("-")[0]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CATCH_UP_S
    while True:
        record = Read(
            process=Process(recorder).number,
            queue=queue_name(plan.topic, broker, queue_id),
            inv=now_ns(),
            ret=0,
            status="ok",
            final=True,
            eventual=True,
            node=node,
        )
        try:
            await _fill(record, plan.topic, queue_id, wire)
        except DLedgerError as error:
            record.status, record.error = "info", short(error)
        record.ret = now_ns()
        if record.status == "ok" or loop.time() >= deadline:
            recorder.note("final", record.status, record)
            return
        await asyncio.sleep(_PAUSE_S)


async def _fill(record: Read, topic: str, queue_id: int, wire: Wire) -> None:
    # Whoever is asked: the barrier makes the leader tell how long the queue is by now.
    length = await wire.length(record.node, topic, queue_id)
    position, end, low = 0, 0, 0
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CATCH_UP_S
    while True:
        found = await wire.pull(record.node, topic, queue_id, position, _PULL_COUNT)
        end = found.offset_max
        if not found.offsets and position < found.offset_min:
            # Retention has dropped the beginning: what there is begins here.
            record.values, record.offsets = [], None
            position = low = found.offset_min
        elif found.offsets:
            record.values.extend(found.values)
            if found.offsets != list(range(position, position + len(found.offsets))):
                offsets = list(range(low, position)) if record.offsets is None else record.offsets
                record.offsets = [*offsets, *found.offsets]
            elif record.offsets is not None:
                record.offsets.extend(found.offsets)
            position = found.offsets[-1] + 1
        elif position >= length or loop.time() >= deadline:
            break
        else:
            await asyncio.sleep(_PAUSE_S)  # a follower that has not applied everything yet
    record.start = record.first = record.low = low
    record.max, record.end, record.whole = position - low + 1, end, True
