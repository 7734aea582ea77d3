"""Committed offsets as objects of their own: one client commits ever larger ones, others look.

Every group has one committer, as a queue has one owner. So what is committed is the largest that
was committed, and the checkers can demand that of every look (rules M1 to M3).
"""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import PullConsumerConfig
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from jepsen_tests.history import Commit, Fetch
from jepsen_tests.workloads.group_member import name_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short

GROUPS = 4
LOOKERS = 2
_RATE_MAX = 300.0
_REST_S = 0.02


async def run_offsets(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop."""
    rate = min(plan.rate, _RATE_MAX) / (GROUPS * (1 + LOOKERS))
    async with asyncio.TaskGroup() as tasks:
        for number in range(GROUPS):
            # Its groups are nobody else's, and do not consume what they commit.
            group = f"{plan.consumers}-offsets-{number}"
            for place in range(1 + LOOKERS):
                chance = random.Random(f"{plan.seed}-offsets-{number}-{place}")
                process = _OffsetProcess(plan, recorder, group, chance)
                pacer = Pacer(rate, chance, stopping)
                tasks.create_task(process.run(pacer, commits=place == 0))


class _OffsetProcess:
    def __init__(
        self, plan: WorkerPlan, recorder: Recorder, group: str, chance: random.Random
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._group = group
        self._chance = chance
        self._process = Process(recorder)
        self._next: dict[MessageQueue, int] = {}

    async def run(self, pacer: Pacer, *, commits: bool) -> None:
        config = PullConsumerConfig(session=session_config(self._plan))
        nameserver = self._plan.nameserver
        async with AsyncPullConsumer(self._group, nameserver=nameserver, config=config) as client:
            queues = await client.queues(self._plan.topic)
            while await pacer.turn():
                queue = self._chance.choice(queues)
                action = self._commit(client, queue) if commits else self._fetch(client, queue)
                if not await action:
                    await pacer.rest(_REST_S)

    async def _commit(self, client: AsyncPullConsumer, queue: MessageQueue) -> bool:
        offset = self._next[queue] = self._next.get(queue, 0) + self._chance.randrange(1, 20)
        record = Commit(
            process=self._process.number,
            group=self._group,
            queue=name_of(queue),
            offset=offset,
            inv=now_ns(),
            ret=0,
            status="ok",
        )
        try:
            await client.commit(queue, offset)
        except DLedgerError as error:
            # Made again until it is answered: an earlier attempt may have been the one that worked.
            record.status, record.error = "info", short(error)
        record.ret = now_ns()
        return self._note("commit", record)

    async def _fetch(self, client: AsyncPullConsumer, queue: MessageQueue) -> bool:
        record = Fetch(
            process=self._process.number,
            group=self._group,
            queue=name_of(queue),
            inv=now_ns(),
            ret=0,
            status="ok",
        )
        try:
            record.offset = await client.committed(queue)
        except DLedgerError as error:
            record.status, record.error = "fail", short(error)
        record.ret = now_ns()
        return self._note("fetch", record)

    def _note(self, kind: str, record: Commit | Fetch) -> bool:
        self._recorder.note(kind, record.status, record)
        if record.status == "info":
            self._process.crashed()
        return record.status == "ok"
