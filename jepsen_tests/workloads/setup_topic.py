"""The first act of every run: the topic and the consumer group."""

from __future__ import annotations

import asyncio

from dledger.client.admin import AsyncAdmin
from dledger.model import GroupConfig
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Recorder


async def run_setup(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Creates what the workload needs; raises `DLedgerError` if it cannot."""
    async with AsyncAdmin(nameserver=plan.nameserver) as admin:
        await admin.create_topic(plan.topic, queue_count=plan.queue_count)
        await admin.create_group(GroupConfig(name=plan.group))
        if plan.retry_max >= 0:
            await admin.create_group(GroupConfig(name=plan.consumers, retry_max=plan.retry_max))
