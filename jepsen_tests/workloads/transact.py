"""W4: transactions, of which some end as their producer says and some only when it is asked."""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import ProducerConfig
from dledger.client.results import SendResult
from dledger.client.transaction_producer import AsyncTransactionProducer, TransactionState
from dledger.errors import DLedgerError
from dledger.message import Message, ReceivedMessage
from jepsen_tests.history import CheckBack, Half, Resolve, Value
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.workloads.bodies import body_of, value_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of

_GROUP = "jepsen-transactions"
_COMMITTED, _ROLLED_BACK = 0.60, 0.25
_HESITATES = 0.3
_CONTRADICTS = 0.05
_PROCESSES = 20
_REST_S = 0.02
_SETTLE_S = 60.0
_QUIET_S = 5.0
_PAUSE_S = 0.1


async def run_transact(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop, then until every transaction has ended.

    Raises:
        HarnessError: Some transaction was left, and nobody asked for it in time.
    """
    desk = _Desk(plan, recorder)
    config = ProducerConfig(
        attempt_timeout_s=plan.timeout_s,
        send_timeout_s=2 * plan.timeout_s,
        retry_unknown=False,
        session=session_config(plan),
    )
    async with AsyncTransactionProducer(
        _GROUP, checker=desk.check, nameserver=plan.nameserver, config=config
    ) as producer:
        async with asyncio.TaskGroup() as tasks:
            for number in range(_PROCESSES):
                chance = random.Random(f"{plan.seed}-transact-{number}")
                pacer = Pacer(plan.rate / _PROCESSES, chance, stopping)
                tasks.create_task(desk.work(producer, chance, pacer))
        await desk.settle(producer)


class _Desk:
    """The local side of all transactions: each one's fate follows from its value."""

    def __init__(self, plan: WorkerPlan, recorder: Recorder) -> None:
        self._plan = plan
        self._recorder = recorder
        self._left: dict[Value, SendResult] = {}  # nothing was said to the broker
        self._unsettled: dict[Value, SendResult] = {}  # nobody knows whether the broker heard
        self._answered: set[Value] = set()
        self._asked_at = 0.0
        self._checker = Process(recorder)

    def fate(self, value: Value) -> tuple[TransactionState, bool]:
        """Returns how a transaction ends, and whether that is said only when asked."""
        chance = random.Random(f"{self._plan.seed}-{value}")
        kind = chance.random()
        is_left = kind >= _COMMITTED + _ROLLED_BACK
        commits = chance.random() < 0.5 if is_left else kind < _COMMITTED
        return (TransactionState.COMMIT if commits else TransactionState.ROLLBACK), is_left

    async def work(
        self, producer: AsyncTransactionProducer, chance: random.Random, pacer: Pacer
    ) -> None:
        """One process: a transaction after the other."""
        process = Process(self._recorder)
        while await pacer.turn():
            if not await self._one(producer, chance, process):
                await pacer.rest(_REST_S)

    async def _one(
        self, producer: AsyncTransactionProducer, chance: random.Random, process: Process
    ) -> bool:
        value = process.new_value()
        record = Half(
            process=process.number,
            topic=self._plan.topic,
            value=value,
            inv=now_ns(),
            ret=0,
            status="ok",
        )
        message = Message(self._plan.topic, body_of(value, self._plan.body_bytes))
        try:
            half = await producer.prepare(message)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        record.ret = now_ns()
        self._recorder.note("half", record.status, record)
        if record.status == "info":
            process.crashed()
        if record.status != "ok":
            return False
        state, is_left = self.fate(value)
        if is_left:
            self._left[value] = half
            return True
        await self._finish(producer, process, value, half, state)
        if value not in self._unsettled and chance.random() < _CONTRADICTS:
            # Must be refused: whether it is, the history tells.
            other = {TransactionState.COMMIT, TransactionState.ROLLBACK} - {state}
            await self._finish(producer, process, value, half, other.pop())
            self._unsettled.pop(value, None)
        return value not in self._unsettled

    async def _finish(
        self,
        producer: AsyncTransactionProducer,
        process: Process,
        value: Value,
        half: SendResult,
        state: TransactionState,
    ) -> None:
        inv = now_ns()
        result = await producer.finish(half, state)
        if result.is_ended:
            self._unsettled.pop(value, None)
        else:
            self._unsettled[value] = half
        self._note_end(process, value, state, inv, is_ended=result.is_ended)

    def _note_end(
        self,
        process: Process,
        value: Value,
        state: TransactionState,
        inv: int,
        *,
        is_ended: bool,
        is_answer: bool = False,
    ) -> None:
        record = Resolve(
            process=process.number,
            value=value,
            decision="commit" if state is TransactionState.COMMIT else "rollback",
            inv=inv,
            ret=now_ns(),
            status="ok" if is_ended else "info",
            check_back=is_answer,
        )
        self._recorder.note("answer" if is_answer else "end", record.status, record)
        if record.status == "info":
            process.crashed()

    async def check(self, message: ReceivedMessage) -> TransactionState:
        """Answers the broker; at the first question, it sometimes does not know yet."""
        value = value_of(message.body)
        now = now_ns()
        self._asked_at = asyncio.get_running_loop().time()
        self._recorder.event(CheckBack(process=self._checker.number, value=value, t=now))
        self._recorder.counts["asked-ok"] += 1
        state, _ = self.fate(value)
        hesitates = random.Random(f"{self._plan.seed}-{value}-hesitates").random() < _HESITATES
        if hesitates and value not in self._answered:
            self._answered.add(value)
            return TransactionState.UNKNOWN
        self._answered.add(value)
        # Whether the broker takes the answer is not told: it asks again if it does not.
        self._note_end(self._checker, value, state, now, is_ended=False, is_answer=True)
        return state

    async def settle(self, producer: AsyncTransactionProducer) -> None:
        """Waits until the broker has asked for all that was left, then makes sure of every end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_S
        while True:
            now = loop.time()
            never = self._left.keys() - self._answered
            if not never and now - self._asked_at >= _QUIET_S:
                break
            if now >= deadline:
                what = f"{len(never)} were never asked for" if never else "questions do not end"
                raise HarnessError(f"of {len(self._left)} transactions left, {what}")
            await asyncio.sleep(_PAUSE_S)
        process = Process(self._recorder)
        for value, half in {**self._left, **self._unsettled}.items():
            await self._finish(producer, process, value, half, self.fate(value)[0])
