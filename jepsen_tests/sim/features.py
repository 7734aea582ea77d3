"""What clients of the broker layer do beside sending and reading: each seed has some of it.

Every feature has topics of its own, so that each is judged by its own rules: committed offsets by
M1 to M3, transactions by D5, delayed messages by D6, a consumer group by D1 to D3 and D7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from dledger.client.config import PullConsumerConfig, PushConsumerConfig
from dledger.client.group_reader import Delivery
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.results import SendResult
from dledger.client.transaction_producer import AsyncTransactionProducer, TransactionState
from dledger.errors import DLedgerError, RouteNotFoundError
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue
from jepsen_tests.history import (
    Assign,
    CheckBack,
    Commit,
    Deliver,
    Done,
    Fetch,
    Group,
    Half,
    Resolve,
    Revoke,
    Send,
    Value,
    make_value,
    queue_name,
)
from jepsen_tests.sim.world import LivenessError, World, definite

if TYPE_CHECKING:
    from jepsen_tests.sim.broker_layer import BrokerClients, Client

TRANSACTIONS, DELAYS = "sim-transactions", "sim-delays"
GROUP = "sim-group"
REST_S = 0.1
DRAIN_S = 40.0
TAKE_S = 0.1


def place(queue: MessageQueue) -> str:
    """Returns the name of a queue in histories."""
    return queue_name(queue.topic, queue.broker_name, queue.queue_id)


def body_of(value: int) -> bytes:
    """Returns a short body."""
    return value.to_bytes(8, "big")


def value_of(body: bytes) -> int:
    """Returns the number in a body."""
    return int.from_bytes(body[:8], "big")


class Feature:
    """One thing that clients do during a run."""

    topics: tuple[str, ...] = ()

    def __init__(self, clients: BrokerClients) -> None:
        self.clients = clients
        self.world: World = clients.world

    async def start(self) -> None:
        """Prepares it; in the context of no process."""

    def work(self, until: float) -> list[tuple[Client, Coroutine[Any, Any, None]]]:
        """Returns what the clients do until then."""
        return []

    async def settle(self) -> None:
        """Brings it to an end after everything was healed."""

    def random(self, name: object) -> Random:
        """Returns the chance of a part."""
        return Random(f"{type(self).__name__}/{self.world.plan.seed}/{name}")


class Offsets(Feature):
    """Each client commits ever larger offsets of a group of its own; another one looks."""

    def work(self, until: float) -> list[tuple[Client, Coroutine[Any, Any, None]]]:
        """Commits and looks."""
        everyone = self.clients.clients
        pairs = []
        for number, client in enumerate(everyone):
            other = everyone[(number + 1) % len(everyone)]
            group = f"sim-offsets-{number}"
            # It consumes nothing, so that what it commits says nothing about messages.
            self.world.history.append(Group(group=group, topics=[], tags=["none"]))
            pairs.append((client, self._run(client, group, until, commits=True)))
            pairs.append((other, self._run(other, group, until, commits=False)))
        return pairs

    async def _run(self, client: Client, group: str, until: float, *, commits: bool) -> None:
        random = self.random(f"{group}/{commits}")
        consumer = AsyncPullConsumer(
            group,
            nameserver=client.nameserver,
            config=PullConsumerConfig(session=client.session),
            clock=client.clock,
        )
        await consumer.start()
        process, offset = self.clients.process(), 0
        while self.world.loop.time() < until:
            await asyncio.sleep(random.expovariate(4.0))
            queue = random.choice(self.clients.queues)
            if commits:
                offset += random.randrange(1, 20)
                known = await self._commit(consumer, process, group, queue, offset)
            else:
                known = await self._fetch(consumer, process, group, queue)
            if not known:
                process = self.clients.process()
                await asyncio.sleep(REST_S)
        await consumer.close()

    async def _commit(
        self,
        consumer: AsyncPullConsumer,
        process: int,
        group: str,
        queue: MessageQueue,
        offset: int,
    ) -> bool:
        record = Commit(
            process=process,
            group=group,
            queue=place(queue),
            offset=offset,
            inv=self.world.now_ns(),
            ret=0,
            status="ok",
        )
        try:
            await consumer.commit(queue, offset)
        except DLedgerError as error:
            # Made again until it is answered: an earlier attempt may be the one that worked.
            record.status, record.error = "info", str(error)
        record.ret = self.world.now_ns()
        self.world.history.append(record)
        return record.status == "ok"

    async def _fetch(
        self, consumer: AsyncPullConsumer, process: int, group: str, queue: MessageQueue
    ) -> bool:
        record = Fetch(
            process=process,
            group=group,
            queue=place(queue),
            inv=self.world.now_ns(),
            ret=0,
            status="ok",
        )
        try:
            record.offset = await consumer.committed(queue)
        except DLedgerError as error:
            record.status, record.error = "fail", str(error)
        record.ret = self.world.now_ns()
        self.world.history.append(record)
        return True


class Transactions(Feature):
    """Half messages that are committed, rolled back, or left until the broker asks."""

    topics = (TRANSACTIONS,)

    def __init__(self, clients: BrokerClients) -> None:
        super().__init__(clients)
        client = self._client = clients.clients[0]
        self._unsettled: dict[Value, SendResult] = {}
        self._producer = AsyncTransactionProducer(
            "sim-transactions",
            checker=self._check,
            nameserver=client.nameserver,
            # A half message sent again may be there twice: see `docs/guarantees.md`.
            config=replace(client.producer_config, retry_unknown=False),
            clock=client.clock,
            unique_keys=client.unique_keys,
        )
        self._asked = clients.process()

    async def start(self) -> None:
        """Connects."""
        await self._client.process.spawn(self._producer.start())

    def work(self, until: float) -> list[tuple[Client, Coroutine[Any, Any, None]]]:
        """Two processes of one producer."""
        return [(self._client, self._run(number, until)) for number in range(2)]

    def fate(self, value: Value) -> tuple[TransactionState, bool]:
        """Returns how a transaction ends, and whether only when asked."""
        random = self.random(value)
        commits = random.random() < 0.6
        state = TransactionState.COMMIT if commits else TransactionState.ROLLBACK
        return state, random.random() < 0.2

    async def _run(self, number: int, until: float) -> None:
        random = self.random(f"run/{number}")
        process, sequence = self.clients.process(), 0
        while self.world.loop.time() < until:
            await asyncio.sleep(random.expovariate(3.0))
            sequence += 1
            value = make_value(process, sequence)
            half = await self._half(process, value)
            if half is not None:
                state, is_left = self.fate(value)
                if is_left:
                    self._unsettled[value] = half
                elif not await self._finish(process, value, half, state):
                    half = None
            if half is None:
                process, sequence = self.clients.process(), 0
                await asyncio.sleep(REST_S)

    async def _half(self, process: int, value: int) -> SendResult | None:
        record = Half(
            process=process,
            topic=TRANSACTIONS,
            value=value,
            inv=self.world.now_ns(),
            ret=0,
            status="ok",
        )
        half = None
        try:
            half = await self._producer.prepare(Message(TRANSACTIONS, body_of(value)))
        except DLedgerError as error:
            record.status = "fail" if definite(error) else "info"
            record.error = str(error)
        record.ret = self.world.now_ns()
        self.world.history.append(record)
        return half

    async def _finish(
        self, process: int, value: Value, half: SendResult, state: TransactionState
    ) -> bool:
        begin = self.world.now_ns()
        result = await self._producer.finish(half, state)
        self._note_end(process, value, state, begin, is_ended=result.is_ended)
        if result.is_ended:
            self._unsettled.pop(value, None)
        else:
            self._unsettled[value] = half
        return result.is_ended

    def _note_end(
        self, process: int, value: Value, state: TransactionState, begin: int, *, is_ended: bool
    ) -> None:
        self.world.history.append(
            Resolve(
                process=process,
                value=value,
                decision="commit" if state is TransactionState.COMMIT else "rollback",
                inv=begin,
                ret=self.world.now_ns(),
                status="ok" if is_ended else "info",
                check_back=process == self._asked,
            )
        )

    async def _check(self, message: ReceivedMessage) -> TransactionState:
        value, now = value_of(message.body), self.world.now_ns()
        self.world.history.append(CheckBack(process=self._asked, value=value, t=now))
        state, _ = self.fate(value)
        self._note_end(self._asked, value, state, now, is_ended=False)
        return state

    async def settle(self) -> None:
        """Ends every transaction."""

        async def end_all() -> None:
            for value, half in sorted(self._unsettled.items(), key=lambda item: str(item[0])):
                await self._finish(self.clients.process(), value, half, self.fate(value)[0])

        deadline = self.world.loop.time() + DRAIN_S
        while self._unsettled:
            if self.world.loop.time() > deadline:
                raise LivenessError(f"{len(self._unsettled)} transactions do not end")
            await self._client.process.spawn(end_all())
            await asyncio.sleep(0.5)


class Delays(Feature):
    """Messages that must not come before their time, nor be lost."""

    topics = (DELAYS,)

    def __init__(self, clients: BrokerClients) -> None:
        super().__init__(clients)
        self._due_ns = 0

    def work(self, until: float) -> list[tuple[Client, Coroutine[Any, Any, None]]]:
        """One process a client."""
        everyone = self.clients.clients
        return [(client, self._run(client, until)) for client in everyone]

    async def _run(self, client: Client, until: float) -> None:
        random = self.random(client.process.name)
        process, sequence = self.clients.process(), 0
        while self.world.loop.time() < until:
            await asyncio.sleep(random.expovariate(2.0))
            sequence += 1
            delay_ms = random.choice((300, 1_000, 4_000))
            record = Send(
                process=process,
                topic=DELAYS,
                value=make_value(process, sequence),
                inv=self.world.now_ns(),
                ret=0,
                status="ok",
                delay_ms=delay_ms,
            )
            message = Message(DELAYS, body_of(make_value(process, sequence)))
            try:
                await client.producer.send(message, delay=delay_ms / 1000)
            except DLedgerError as error:
                record.status = "fail" if definite(error) else "info"
                record.error = str(error)
                process, sequence = self.clients.process(), 0
            record.ret = self.world.now_ns()
            self._due_ns = max(self._due_ns, record.ret + delay_ms * 1_000_000)
            self.world.history.append(record)

    async def settle(self) -> None:
        """Waits until everything is due."""
        wait_s = (self._due_ns - self.world.now_ns()) / 1e9
        await asyncio.sleep(max(0.0, wait_s) + 1.5)


class Members(Feature):
    """A consumer group whose members come and go while they share all topics."""

    def __init__(self, clients: BrokerClients) -> None:
        super().__init__(clients)
        self._drained = asyncio.Event()
        self._settling = False
        self._tasks: list[asyncio.Task[None]] = []
        self._lives = 0
        self._topics: list[str] = []

    async def start(self) -> None:
        """Lets two members join."""
        self._topics = self.clients.topics()
        self.world.history.append(Group(group=GROUP, topics=self._topics))
        for client in self.clients.clients[:2]:
            self._tasks.append(client.process.spawn(self._be_member(client)))

    async def _be_member(self, client: Client) -> None:
        random = self.random(client.process.name)
        while not self._drained.is_set():
            leave_at = self.world.loop.time() + random.uniform(3.0, 9.0)
            await self._live(client, leave_at)
            if not self._drained.is_set():
                await asyncio.sleep(random.uniform(0.2, 1.5))

    async def _live(self, client: Client, leave_at: float) -> None:
        self._lives += 1
        name = f"{client.process.name}.{self._lives}"
        consumer = AsyncPushConsumer(
            GROUP,
            subscriptions=dict.fromkeys(self._topics, "*"),
            nameserver=client.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(
                commit_interval_s=0.5,
                rebalance_interval_s=2.0,
                suspend_s=2.0,
                drain_timeout_s=2.0,
                redelivery_max_s=4.0,
                session=client.session_named(name),
            ),
            clock=client.clock,
        )
        windows: dict[MessageQueue, Any] = {}
        await consumer.start()
        while not self._drained.is_set():
            if self.world.loop.time() >= leave_at and not self._settling:
                break
            delivery = await consumer.reader.take(TAKE_S)
            for queue in [queue for queue, window in windows.items() if window.dropped]:
                self._revoke(windows, queue, name)
            if delivery is not None:
                self._take(windows, delivery, name)
                consumer.reader.finish(delivery)
        await consumer.close()
        for queue in list(windows):
            self._revoke(windows, queue, name)

    def _take(self, windows: dict[MessageQueue, Any], delivery: Delivery, name: str) -> None:
        queue, now = delivery.window.queue, self.world.now_ns()
        if windows.get(queue) is not delivery.window:
            if queue in windows:
                self._revoke(windows, queue, name)
            windows[queue] = delivery.window
            self.world.history.append(Assign(group=GROUP, consumer=name, queue=place(queue), t=now))
        message = delivery.message
        common: dict[str, Any] = {
            "group": GROUP,
            "consumer": name,
            "queue": place(queue),
            "offset": message.queue_offset,
            "value": value_of(message.body),
        }
        attempt = message.reconsume_times + 1
        self.world.history.append(Deliver(**common, t=now, attempt=attempt))
        self.world.history.append(Done(**common, t=now + 1))

    def _revoke(self, windows: dict[MessageQueue, Any], queue: MessageQueue, name: str) -> None:
        del windows[queue]
        self.world.history.append(
            Revoke(group=GROUP, consumer=name, queue=place(queue), t=self.world.now_ns())
        )

    async def settle(self) -> None:
        """Waits until the group has committed everything, then ends it."""
        self._settling = True
        deadline = self.world.loop.time() + DRAIN_S
        client = self.clients.clients[0]
        while not await client.process.spawn(self._is_complete(client)):
            if self.world.loop.time() > deadline:
                raise LivenessError(f"the group has not consumed everything in {DRAIN_S} s")
            await asyncio.sleep(0.2)
        self._drained.set()
        await asyncio.wait(self._tasks)
        self.world.history.append(Group(group=GROUP, topics=self._topics, drained=True))

    async def _is_complete(self, client: Client) -> bool:
        asker = AsyncPullConsumer(
            GROUP,
            nameserver=client.nameserver,
            config=PullConsumerConfig(session=client.session_named("asker")),
            clock=client.clock,
        )
        await asker.start()
        try:
            for topic in self._topics:
                try:
                    queues = await asker.queues(topic)
                except RouteNotFoundError:
                    continue  # nothing was sent to it
                for queue in queues:
                    end = await asker.offset_max(queue)
                    if end and (await asker.committed(queue) or 0) < end:
                        return False
        except DLedgerError:
            return False
        finally:
            await asker.close()
        return True


KINDS: dict[str, type[Feature]] = {
    "offsets": Offsets,
    "transactions": Transactions,
    "delays": Delays,
    "group": Members,
}
