"""One connection to a broker's send path, with and without the short way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from broker.appender import Appender, AppenderConfig
from broker.config import TimersSection
from broker.delays import Delays
from broker.dispatcher import Dispatcher, Place, Route
from broker.gate import WriteGate
from broker.intake import MessageIntake
from broker.processors.send import SendProcessor
from broker.quotas import Quotas
from broker.state_machine import MessagesApplied
from broker.statistics import Statistics
from dledger.clock import ManualClock
from dledger.errors import FlowControlError, LeadershipLostError, MessageRejectedError
from dledger.message import pack_host
from dledger.model import GroupConfig, TopicConfig
from dledger.remoting.frames import decode_frames
from dledger.remoting.server import RemotingServer, ServerConfig
from store.producer_lanes import Repeated

TOPICS = (
    TopicConfig(name="t", topic_id=1, read_queue_count=4, write_queue_count=2),
    TopicConfig(name="a topic of 128 or more bytes".ljust(130, "x"), topic_id=2),
    TopicConfig(name="readonly", topic_id=3, permission=4),
    TopicConfig(name="%RETRY%g", topic_id=4),
    TopicConfig(name="limited", topic_id=5, attributes={"quota.messages_per_second": "0.001"}),
    TopicConfig(name="TBW102", topic_id=6),
)
HOST = pack_host("10.0.0.1", 10911)


class Raft:
    """Commits, or does not, when told to."""

    term, leader_id, is_serving, pending_bytes = 1, "r", True, 0

    def __init__(self) -> None:
        self.end = 0
        self.entries: list[bytes] = []
        self.callbacks: list[Any] = []
        self.refuse = False

    def add_listener(self, listener: Any) -> None:
        listener.on_serving(1)

    def propose(self, command: Any, callback: Any) -> None:
        if self.refuse:
            raise FlowControlError("too much")
        body = command.encode(self.end + 40)
        assert len(body) == command.size_bytes
        self.end += 40 + len(body)
        self.entries.append(bytes(body))
        self.callbacks.append(callback)


class Store:
    """A few topics; nothing is applied."""

    timers = SimpleNamespace(count=lambda: 0, used_bytes=lambda: 0)

    def topic(self, name: str) -> TopicConfig | None:
        return next((topic for topic in TOPICS if topic.name == name), None)

    def group(self, name: str) -> GroupConfig:
        return GroupConfig(name=name, retry_max=0)

    def queue_bounds(self, _topic_id: int, _queue_id: int) -> tuple[int, int]:
        return 0, 7

    def find_send(self, *_arguments: Any) -> Any:
        return Repeated.NO


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": ("10.1.1.1", 4711)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.written += b"".join(pieces)

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Side:
    """A broker's send path with or without the short way, and one connection to it."""

    def __init__(self, intake: MessageIntake, *, short: bool, inflight_max: int) -> None:
        clock = ManualClock(wall_ms=1_700_000_000_000)
        self.raft, store = Raft(), Store()
        gate = WriteGate(self.raft, disk_free_min_bytes=1, pending_bytes_max=1 << 20)
        self.statistics = Statistics(0.0, 0)
        self.appender = Appender(self.raft, store, AppenderConfig(), clock)
        context: Any = SimpleNamespace(
            store=store,
            gate=gate,
            clock=clock,
            config=SimpleNamespace(broker_name="b", cluster_name="c"),
            appender=self.appender,
            quotas=Quotas(),
            statistics=self.statistics,
            counters=SimpleNamespace(deduplicated=0),
        )
        nothing: Any = SimpleNamespace(open=self._refuse, ensure_topic=self._refuse)
        nothing.template = lambda _name: None
        dispatcher = Dispatcher(
            is_serving=lambda: self.raft.is_serving,
            tasks=None,  # type: ignore[arg-type]
            on_fatal=lambda error: None,
        )
        send = SendProcessor(
            context,
            nothing,
            intake,
            Delays(TimersSection(), store, clock, broker_name="b"),  # type: ignore[arg-type]
            nothing,
            store_host=HOST,
            redirect=dispatcher.redirect,
        )
        route = Route(Place.LEADER, send.send)
        dispatcher.connect({10: route, 310: route, 320: route}, None)  # type: ignore[arg-type]
        handler: Any = SimpleNamespace(
            handle=dispatcher.handle, connection_lost=lambda connection: None
        )
        self.server = RemotingServer(handler, ServerConfig(inflight_max=inflight_max))
        self.taken = 0
        if short:
            self.server.take_run = lambda connection, frames: self._take(send, connection, frames)
        self.connection = self.server._new_connection()
        self.transport = Transport()
        self.connection.connection_made(self.transport)

    def _take(self, send: SendProcessor, connection: Any, frames: Any) -> bool:
        before = len(frames)
        took = send.short.take(connection, frames)
        self.taken += before - len(frames)
        return took

    @staticmethod
    def _refuse(*_arguments: Any, **_more: Any) -> None:
        raise MessageRejectedError("not in this test")

    async def turn(self, data: bytes, outcome: str) -> None:
        """Receives bytes, proposes what they brought and decides it."""
        self.raft.refuse = outcome == "refused"
        self.connection.data_received(data)
        for _ in range(4):
            await asyncio.sleep(0)
        callbacks, self.raft.callbacks = self.raft.callbacks, []
        for callback in callbacks:
            if outcome == "lost":
                callback(None, LeadershipLostError("lost"))
            else:
                callback(MessagesApplied(), None)
        for _ in range(4):
            await asyncio.sleep(0)

    def result(self) -> Any:
        connection, server = self.connection, self.server
        return (
            sorted(frame.header + frame.body for frame in decode_frames(self.transport.written)),
            self.raft.entries,
            (self.transport.closed, connection.inflight, server.inflight, server.inflight_bytes),
            [self.statistics.put.total(field) for field in (0, 1, 3)],
            sum(self.statistics.put_times.counts),
        )


def make_intake() -> MessageIntake:
    """It remembers what it has seen, so the more it sees, the better."""
    return MessageIntake(cluster_name="c", store_host=HOST, new_unique_key=lambda: "NEW")
