"""Broken brokers for the broker layer: parts exchanged from outside, for the time of a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from broker import server
from broker.half_messages import is_half
from broker.offset_commits import Committed, OffsetCommits
from broker.processors.send import SendProcessor
from dledger.codes import MessageFlag
from dledger.message import Property, decode_properties, encode_properties
from dledger.model import TopicConfig
from jepsen_tests.sim.broker_layer import BrokerServer, SimulatedBroker
from store.timer_table import TimerReader

EARLY_MS = 400
VISIBLE_OF = 8

Surroundings = Callable[[], AbstractContextManager[None]]


def _exchanged(owner: Any, name: str, part: Any) -> Surroundings:
    """Returns surroundings in which a part is another one."""

    @contextmanager
    def exchange() -> Iterator[None]:
        before = getattr(owner, name)
        setattr(owner, name, part)
        try:
            yield
        finally:
            setattr(owner, name, before)

    return exchange


class _AnswersEarly(OffsetCommits):
    """Answers a commit before it is replicated."""

    def add(
        self,
        group: str,
        topic: str,
        queue_id: int,
        offset: int,
        callback: Committed | None = None,
    ) -> None:
        super().add(group, topic, queue_id, offset)
        if callback is not None:
            callback(None)


_append: Any = SendProcessor._append


def _append_visibly(
    self: Any, connection: Any, command: Any, header: Any, topic: TopicConfig
) -> None:
    half = is_half(header.sys_flag, header.properties)
    if half and zlib.crc32(header.properties.encode()) % VISIBLE_OF == 0:
        header.sys_flag &= ~int(MessageFlag.TRANSACTION_PREPARED)
        values = decode_properties(header.properties.encode())
        values.pop(Property.TRANSACTION_PREPARED, None)
        header.properties = encode_properties(values).decode()
    _append(self, connection, command, header, topic)


_due: Any = TimerReader.due


def _due_early(self: TimerReader, now_ms: int, *arguments: Any, **settings: Any) -> Any:
    return _due(self, now_ms + EARLY_MS, *arguments, **settings)


class _Forgetful:
    """A listener: a new leader knows nothing of what producers have sent."""

    def __init__(self, broker: SimulatedBroker) -> None:
        self._broker = broker

    def on_serving(self, _term: int) -> None:
        if self._broker.opened is not None:
            self._broker.opened.store._tables.lanes.clear()

    def on_stopped_serving(self) -> None:
        pass

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        pass


class _ForgetsProducers(SimulatedBroker):
    def _make_raft(self, *parts: Any) -> Any:
        node = super()._make_raft(*parts)
        node.add_listener(_Forgetful(self))
        return node


class ForgetsProducers(BrokerServer):
    """Runs brokers that lose the table of producers' sends at a change of leader."""

    broker_class = _ForgetsProducers


commits_early = _exchanged(server, "OffsetCommits", _AnswersEarly)
shows_halves = _exchanged(SendProcessor, "_append", _append_visibly)
delivers_early = _exchanged(TimerReader, "due", _due_early)
