"""Broken parts for brokers.

Where a broker makes a part itself, the harness's broker process puts another class under the name
by which brokers make it. So nothing in the product can be switched to do wrong.
"""

from __future__ import annotations

import asyncio
import copy
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from broker import half_messages, locks
from broker.appender import Appender
from broker.config import BrokerConfig
from broker.locks import LockQueues
from broker.message_run import MessageRun
from broker.messages_command import EncodedMessage, Messages, SendIdentity
from broker.offset_commits import Committed, OffsetCommits
from broker.processors.offsets import OffsetProcessor
from broker.requests import AppendCallback
from broker.riders import Rider
from broker.server import Broker
from broker.timers import TimerDelivery
from broker.transaction_service import End, TransactionService
from dledger.clock import Clock
from dledger.errors import DLedgerError, NotLeaderError
from dledger.model import TopicConfig
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
from dledger.raft.upstream import LEADER
from dledger.remoting.commands import Command
from dledger.remoting.headers import QueryConsumerOffsetHeader
from dledger.remoting.server import Connection
from store.files import OsFileSystem
from store.state_rows import RowChanges

MakeBroker = Callable[[BrokerConfig], Broker]

_ONE_IN = 20
_AHEAD_MS = 700
_TEAR_S = 0.03
_TRUSTS_ITSELF_MS = 60_000


class CommitsAlone(Engine):
    """K1: a leader takes for committed what it has written itself."""

    def tick(self) -> None:
        """Runs the engine, then commits everything."""
        super().tick()
        if self.raft_state() == LEADER:
            self._advance_commit(self._log.last_index)


class TrustsItself(RaftNode):
    """K2: a leader that answers reads without asking whether it still leads."""

    async def read_barrier(self) -> None:
        """Asks nobody."""
        if not self.is_serving:
            raise NotLeaderError(self.leader_id, self.term)


class SwallowsSync(OsFileSystem):
    """K6: a disk that says synced and is not, but for the first time after a file was made.

    So files and their sizes survive, as they would in a drive whose cache lies. Files that are
    replaced as a whole are spared: a replica that cannot read its vote does not start at all.
    """

    def __init__(self) -> None:
        self._honest: set[int] = set()  # for one sync, or until they are closed
        self._replaced: set[int] = set()

    def create(self, path: Path, size_bytes: int) -> int:
        """Creates a file whose first sync is an honest one."""
        file = super().create(path, size_bytes)
        self._honest.add(file)
        return file

    def open(self, path: Path) -> int:
        """Opens a file."""
        file = super().open(path)
        if path.suffix == ".spare":
            self._replaced.add(file)
        return file

    def close(self, file: int) -> None:
        """Closes a file."""
        self._honest.discard(file)
        self._replaced.discard(file)
        super().close(file)

    def sync(self, file: int) -> None:
        """Does nothing, but for a new file."""
        if file in self._honest or file in self._replaced:
            self._honest.discard(file)
            super().sync(file)


class ForgetsProducers(Appender):
    """K9: what is known of producers lives with a leader, not in the replicated state."""

    _mine: set[tuple[int, int, SendIdentity]]

    def on_serving(self, term: int) -> None:
        """Begins anew."""
        self._mine = set()
        super().on_serving(term)

    def _repeats(
        self,
        topic_id: int,
        queue_id: int,
        identity: SendIdentity,
        count: int,
        callback: AppendCallback,
    ) -> bool:
        known = (topic_id, queue_id, identity)
        if known in self._mine:
            return super()._repeats(topic_id, queue_id, identity, count, callback)
        self._mine.add(known)
        return False


class KeepsOffsets(OffsetCommits):
    """K14: committed offsets stay in the memory of the replica that took them."""

    def add(
        self, group: str, topic: str, queue_id: int, offset: int, callback: Committed | None = None
    ) -> None:
        """Keeps an offset, and says that it is committed."""
        kept[group, topic, queue_id] = offset
        if callback is not None:
            callback(None)


class RemembersOffsets(OffsetProcessor):
    """The other half of K14."""

    async def query_consumer_offset(self, connection: Connection, command: Command) -> None:
        """Answers from memory."""
        header = command.header(QueryConsumerOffsetHeader)
        offset = kept.get((header.consumer_group, header.topic, header.queue_id))
        if offset is None:
            await super().query_consumer_offset(connection, command)
        else:
            connection.reply(command, 0, {"offset": str(offset)})


kept: dict[tuple[str, str, int], int] = {}  # of this process, which is one replica


class CommitsRolledBack(TransactionService):
    """K16: some messages that are rolled back are delivered."""

    async def end(self, end: End) -> None:
        """Takes one rollback in twenty for a commit."""
        if not end.is_commit and random.random() < 1 / _ONE_IN:
            end = replace(end, is_commit=True)
        await super().end(end)


class ShowsHalves(TransactionService):
    """K16: some half messages are visible at once."""

    def open(self, header: Any, body: bytes, **more: Any) -> None:
        """Stores one half message in twenty in its topic as well."""
        topic = self._context.store.topic(more["topic"])
        if topic is not None and random.random() < 1 / _ONE_IN:
            plain = copy.copy(header)
            plain.sys_flag &= ~half_messages.TRANSACTION_BITS
            intake = self._intake.encode(
                plain,
                body,
                topic=more["topic"],
                queue_id=more["queue_id"],
                born_host=more["born_host"],
                is_batch=False,
            )
            self._context.appender.append(
                topic, more["queue_id"], intake.messages, lambda _first, _places, _error: None
            )
        super().open(header, body, **more)


class _AheadClock:
    """A clock that is ahead of the true time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wall_ms(self) -> int:
        return self._clock.wall_ms() + _AHEAD_MS

    def monotonic(self) -> float:
        return self._clock.monotonic()


class DeliversEarly(TimerDelivery):
    """K17: timers go by a clock that is ahead."""

    def __init__(self, store: Any, raft: Any, appender: Any, clock: Clock, **more: Any) -> None:
        super().__init__(store, raft, appender, _AheadClock(clock), **more)


class TearsBatches(Appender):
    """K18: a batch is stored message by message."""

    def append(
        self,
        topic: TopicConfig,
        queue_id: int,
        messages: Messages,
        callback: AppendCallback,
        identity: SendIdentity | None = None,
        *,
        rider: Rider | None = None,
    ) -> bool:
        """Appends the first message, and the others each when the one before it is stored."""
        if len(messages) < 2 or rider is not None:
            return super().append(topic, queue_id, messages, callback, identity, rider=rider)
        messages = _one_by_one(messages)
        places: list[int] = []
        begin: list[int] = []

        def stored(first: int, offsets: list[int], error: DLedgerError | None) -> None:
            if error is not None:
                callback(-1, [], error)
                return
            begin.append(first)
            places.extend(offsets)
            if len(places) == len(messages):
                callback(begin[0], places, None)
            else:
                asyncio.get_running_loop().call_later(_TEAR_S, go_on)

        def go_on() -> None:
            try:
                following = messages[len(places)]
                super(TearsBatches, self).append(topic, queue_id, [following], stored)
            except DLedgerError as error:
                callback(-1, [], error)

        return super().append(topic, queue_id, messages[:1], stored)


def _one_by_one(messages: Messages) -> Sequence[EncodedMessage]:
    """Returns messages that came by column as if they had come one by one."""
    if not isinstance(messages, MessageRun):
        return messages
    positions = messages.positions(0)
    stored = b"".join(messages.pieces(0, positions, 0))
    cuts = zip(positions, [*positions[1:], len(stored)], messages.unique_keys, strict=True)
    return [EncodedMessage(stored[start:stop], messages.tag_hash, key) for start, stop, key in cuts]


def _grants_all(_rows: RowChanges, command: LockQueues) -> list[tuple[str, int]]:
    """K15: a lock is given to whoever asks."""
    return list(command.queues)


def _put(right: type[Any], broken: type[Any]) -> MakeBroker:
    """Puts a class in the place of another, wherever parts of this process's brokers make it.

    Raises:
        LookupError: Nothing makes it.
    """
    makers = [
        module
        for name, module in sys.modules.items()
        if name.startswith("broker.")
        and name != right.__module__
        and getattr(module, right.__name__, None) is right
    ]
    if not makers:
        raise LookupError(f"no part of a broker makes {right.__name__}")
    for module in makers:
        setattr(module, right.__name__, broken)
    return Broker


def _trusts_itself() -> MakeBroker:
    make = _put(RaftNode, TrustsItself)

    def made(config: BrokerConfig) -> Broker:
        patient = replace(config.raft, check_quorum_ms=_TRUSTS_ITSELF_MS)
        return make(replace(config, raft=patient))

    return made


def _keeps_offsets() -> MakeBroker:
    _put(OffsetCommits, KeepsOffsets)
    return _put(OffsetProcessor, RemembersOffsets)


def _grants_every_lock() -> MakeBroker:
    module: Any = locks
    module.apply_lock = _grants_all
    return Broker


PLANTS: Mapping[str, Callable[[], MakeBroker]] = {
    "K1": lambda: partial(Broker, engine_class=CommitsAlone),
    "K2": _trusts_itself,
    "K6": lambda: partial(Broker, fs=SwallowsSync()),
    "K9": lambda: _put(Appender, ForgetsProducers),
    "K14": _keeps_offsets,
    "K15": _grants_every_lock,
    "K15-locks": _grants_every_lock,
    "K16": lambda: _put(TransactionService, CommitsRolledBack),
    "K16-half": lambda: _put(TransactionService, ShowsHalves),
    "K17": lambda: _put(TimerDelivery, DeliversEarly),
    "K18": lambda: _put(Appender, TearsBatches),
}
