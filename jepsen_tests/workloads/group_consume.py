"""Members of a consumer group that come and go, then a drain: W2 to W5.

When told to stop, a worker goes on until the group was given everything and has committed it, or a
time is over. Members may live in several processes: what counts is what the group has committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dledger.client.config import PullConsumerConfig
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from jepsen_tests.history import Group
from jepsen_tests.planted.clients import member_class
from jepsen_tests.workloads.group_member import Handle, accept
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Recorder

MEMBERS = 3
DRAIN_S = 85.0  # more than a lock outlives its owner
_PLANTED_DRAIN_S = 8.0
_PAUSE_S = 0.2

Condition = Callable[[], Awaitable[bool]]


async def run_group_consume(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Three members share the queues; one after the other leaves and comes back as another."""
    await consume(plan, recorder, stopping, MEMBERS)


async def run_ordered_consume(
    plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event
) -> None:
    """One member reads everything in order."""
    await consume(plan, recorder, stopping, 1, ordered=True)


async def run_ordered_group(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Members share the queues and read them in order; they leave and come back too.

    A queue whose owner could not give its lock back stands still for up to a minute.
    """
    await consume(plan, recorder, stopping, MEMBERS, ordered=True)


async def run_group_member(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """One more member of the group, which leaves only with the load, if nobody kills it before."""
    member = member_class(plan.plant)(plan, recorder, 0)
    await member.run(None, stopping)


async def consume(
    plan: WorkerPlan,
    recorder: Recorder,
    stopping: asyncio.Event,
    members: int,
    *,
    ordered: bool = False,
    handle: Handle = accept,
    finished: Condition | None = None,
    max_attempts: int | None = None,
) -> None:
    """Runs members until told to stop, then drains.

    Args:
        members: So many in this process.
        ordered: Queues are read in order.
        handle: What is done with a message.
        finished: What must hold beside that everything is committed.
        max_attempts: Deliveries before a message is dead.
    """
    info = Group(
        group=plan.consumers, topics=[plan.topic], ordered=ordered, max_attempts=max_attempts
    )
    recorder.event(info)
    drained = asyncio.Event()
    make = member_class(plan.plant)
    async with asyncio.TaskGroup() as tasks:
        for number in range(members):
            member = make(plan, recorder, number, ordered=ordered, handle=handle)
            # Only while nothing drains: a group that shrinks to nothing would never be done.
            settled = stopping if members > 1 else None
            tasks.create_task(member.run(settled, drained))
        await stopping.wait()
        info.drained = await _wait_drained(plan, finished)
        drained.set()
    recorder.event(info)


async def _wait_drained(plan: WorkerPlan, finished: Condition | None) -> bool:
    loop = asyncio.get_running_loop()
    # A group of broken parts may well never be done.
    deadline = loop.time() + (_PLANTED_DRAIN_S if plan.plant else DRAIN_S)
    config = PullConsumerConfig(session=session_config(plan))
    async with AsyncPullConsumer(
        plan.consumers, nameserver=plan.nameserver, config=config
    ) as asker:
        while loop.time() < deadline:
            try:
                queues = await asker.queues(plan.topic)
                complete = all([await _is_complete(asker, queue) for queue in queues])
                if complete and (finished is None or await finished()):
                    return True
            except DLedgerError:
                pass  # asked again
            await asyncio.sleep(_PAUSE_S)
    return False


async def _is_complete(asker: AsyncPullConsumer, queue: MessageQueue) -> bool:
    end = await asker.offset_max(queue)
    return end == 0 or (await asker.committed(queue) or 0) >= end
