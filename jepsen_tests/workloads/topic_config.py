"""W7: several processes change and read the configuration of topics, a register each."""

from __future__ import annotations

import asyncio
import random

import msgspec

from dledger.client.admin import AsyncAdmin
from dledger.client.config import AdminConfig
from dledger.errors import DLedgerError
from dledger.model import TopicConfig
from jepsen_tests.history import Call
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short

TOPICS = 6
PROCESSES = 3
_RATE_PER_TOPIC = 4.0  # each is searched for a legal order
_WRITES = 0.5
_REST_S = 0.2


async def run_topic_config(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Creates its topics, then runs until told to stop."""
    async with AsyncAdmin(nameserver=plan.nameserver) as admin:
        for number in range(TOPICS):
            await admin.create_topic(_name(plan, number), queue_count=1)
    versions = _Versions()
    async with asyncio.TaskGroup() as tasks:
        for number in range(TOPICS):
            for place in range(PROCESSES):
                chance = random.Random(f"{plan.seed}-config-{number}-{place}")
                rate = min(plan.rate / TOPICS, _RATE_PER_TOPIC) / PROCESSES
                pacer = Pacer(rate, chance, stopping)
                process = _ConfigProcess(plan, _name(plan, number), recorder, versions, chance)
                tasks.create_task(process.run(pacer))


def _name(plan: WorkerPlan, number: int) -> str:
    return f"{plan.topic}-config-{number}"


class _Versions:
    """Numbers that no other write of the run uses; 0 is what topics begin with."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """Returns a new one."""
        self._last += 1
        return self._last


class _ConfigProcess:
    """Writes a version into a topic's flags, or reads it back.

    Each is a client of its own: so one may believe in another leader than the others.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        name: str,
        recorder: Recorder,
        versions: _Versions,
        chance: random.Random,
    ) -> None:
        self._name = name
        self._admin = AsyncAdmin(
            nameserver=plan.nameserver, config=AdminConfig(session=session_config(plan))
        )
        self._recorder = recorder
        self._versions = versions
        self._chance = chance
        self._process = Process(recorder)

    async def run(self, pacer: Pacer) -> None:
        async with self._admin:
            while await pacer.turn():
                action = self._write() if self._chance.random() < _WRITES else self._read()
                if not await action:
                    await pacer.rest(_REST_S)

    async def _write(self) -> bool:
        version = self._versions.next()
        record = self._record("write", [version])
        config = TopicConfig(name=self._name, read_queue_count=1, write_queue_count=1)
        try:
            await self._admin.update_topic(msgspec.structs.replace(config, topic_flags=version))
        except DLedgerError as error:
            # Made again until it is answered: an earlier attempt may have been the one that worked.
            record.status, record.error = "info", short(error)
        return self._note(record)

    async def _read(self) -> bool:
        record = self._record("read", [])
        try:
            found = await self._admin.topic(self._name)
            # With several broker groups a change is not one act for all: one group is looked at.
            record.result = found[min(found)].topic_flags
        except DLedgerError as error:
            record.status, record.error = "fail", short(error)
        return self._note(record)

    def _record(self, f: str, args: list[int]) -> Call:
        return Call(
            process=self._process.number,
            model="config",
            object=self._name,
            f=f,
            args=list(args),
            inv=now_ns(),
            ret=0,
            status="ok",
        )

    def _note(self, record: Call) -> bool:
        record.ret = now_ns()
        self._recorder.note(f"config-{record.f}", record.status, record)
        if record.status == "info":
            self._process.crashed()
        return record.status == "ok"
