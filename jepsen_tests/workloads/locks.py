"""W7: several owners contend for the locks of queues (LOCK_BATCH_MQ, UNLOCK_BATCH_MQ).

Each attempt is one request, so that it has one fate. A search for a legal order grows quickly with
its length and with operations of unknown outcome: so owners go on to a fresh lock after a while.
"""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import nameserver_addresses
from dledger.client.session import ClientSession
from dledger.clock import SystemClock
from dledger.codes import EXT_NO_FORWARD, RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from dledger.remoting.bodies import LockBatchBody, decode_locked_queues, encode_lock_batch
from dledger.remoting.errors import response_error
from jepsen_tests.history import Call
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of

RINGS = 6
OWNERS = 3
_OPERATIONS_MAX = 120
_UNKNOWN_MAX = 3
_HOLD_S = 0.02
_RENEWS = 0.3
_REST_S = 0.02


async def run_locks(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(RINGS):
            ring = _Ring(f"{plan.consumers}-locks-{number}", number)
            for place in range(OWNERS):
                chance = random.Random(f"{plan.seed}-locks-{number}-{place}")
                pacer = Pacer(plan.rate / (RINGS * OWNERS), chance, stopping)
                tasks.create_task(_Owner(plan, recorder, ring, chance).run(pacer))


class _Ring:
    """Owners that contend for one lock after the other."""

    def __init__(self, name: str, place: int) -> None:
        self._name = name
        self.place = place  # decides the queue
        self._number = 0
        self._operations = 0
        self._unknown = 0

    @property
    def group(self) -> str:
        """The group whose lock they contend for now."""
        return f"{self._name}-{self._number}"

    def count(self, *, unknown: bool) -> None:
        """Counts an operation."""
        self._operations += 1
        self._unknown += unknown
        if self._operations >= _OPERATIONS_MAX or self._unknown >= _UNKNOWN_MAX:
            self._number += 1
            self._operations = self._unknown = 0


class _Owner:
    """One client that wants the lock, holds it for a moment, and gives it back."""

    def __init__(
        self, plan: WorkerPlan, recorder: Recorder, ring: _Ring, chance: random.Random
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._ring = ring
        self._chance = chance
        self._process = Process(recorder)
        self._session = ClientSession(
            session_config(plan), nameserver_addresses(plan.nameserver), SystemClock()
        )

    async def run(self, pacer: Pacer) -> None:
        await self._session.start()
        try:
            route = await self._session.route(self._plan.topic)
            queue = route.subscribe_queues[self._ring.place % len(route.subscribe_queues)]
            while await pacer.turn():
                group = self._ring.group
                if await self._lock(group, queue):
                    await pacer.rest(self._chance.uniform(0, _HOLD_S))
                    if self._chance.random() < _RENEWS:
                        await self._lock(group, queue)
                    await self._unlock(group, queue)
                else:
                    await pacer.rest(_REST_S)
        finally:
            await self._session.close()

    async def _lock(self, group: str, queue: MessageQueue) -> bool:
        record = self._record("lock", group, queue)
        try:
            held = decode_locked_queues(await self._ask(RequestCode.LOCK_BATCH_MQ, group, queue))
            record.result = queue in held
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        self._note(record)
        return record.result is True

    async def _unlock(self, group: str, queue: MessageQueue) -> None:
        record = self._record("unlock", group, queue)
        try:
            await self._ask(RequestCode.UNLOCK_BATCH_MQ, group, queue)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        self._note(record)

    async def _ask(self, code: RequestCode, group: str, queue: MessageQueue) -> bytes:
        """Makes one attempt; returns the body of the answer."""
        session, broker = self._session, queue.broker_name
        timeout_s = self._plan.timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        body = encode_lock_batch(
            LockBatchBody(consumer_group=group, client_id=session.client_id, queues=[queue])
        )
        address = await session.leader(broker, deadline)
        try:
            answer = await session.ask_leader(
                broker, address, code, {EXT_NO_FORWARD: "1"}, body, timeout_s=timeout_s
            )
        except DLedgerError as error:
            session.note_failure(broker, address, error)
            raise
        session.note_answer(broker, address, answer)
        if answer.code != ResponseCode.SUCCESS:
            raise response_error(answer, address)
        return answer.body

    def _record(self, f: str, group: str, queue: MessageQueue) -> Call:
        return Call(
            process=self._process.number,
            model="queue_lock",
            object=f"{group} on {queue.broker_name}/{queue.queue_id}",
            f=f,
            args=[self._session.client_id],
            inv=now_ns(),
            ret=0,
            status="ok",
        )

    def _note(self, record: Call) -> None:
        record.ret = now_ns()
        self._recorder.note(record.f, record.status, record)
        self._ring.count(unknown=record.status == "info")
        if record.status == "info":
            self._process.crashed()
