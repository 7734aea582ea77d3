"""Message traces: who sent and who consumed what, when, and how long it took.

Producers and consumers with `trace=True` write records to RMQ_SYS_TRACE_TOPIC, as RocketMQ's
clients do. Traces must never hold up what they are about: they gather in memory, leave in the
background and are dropped when there are too many or the cluster does not take them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from dledger.client.results import SendResult
from dledger.client.session import ClientSession
from dledger.codes import RequestCode
from dledger.errors import DLedgerError, InvalidParameterError, RouteNotFoundError
from dledger.message import Message, Property, ReceivedMessage, encode_properties
from dledger.message.identity import parse_offset_message_id
from dledger.message.trace import (
    CONSUMED,
    FAILED,
    TRACE_TOPIC,
    Delivered,
    Delivering,
    Published,
    Record,
    encode_trace,
)
from dledger.remoting.headers import SendMessageHeaderV2

logger = logging.getLogger(__name__)

RECORDS_MAX: Final = 4096
RECORDS_PER_MESSAGE: Final = 100
FLUSH_S: Final = 0.5
CLOSE_S: Final = 2.0
_KEYS_LENGTH_MAX: Final = 8000
_GROUP: Final = "_INNER_TRACE_PRODUCER"


class Handed(NamedTuple):
    """A message that a consumer has in hand."""

    request_id: str
    began_ms: int


class Tracer:
    """Gathers records of one client and sends them. Records may come from any thread."""

    def __init__(self, session: ClientSession, group: str) -> None:
        self._session = session
        self._group = group
        self._records: deque[Record] = deque()
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._turn = 0
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def start(self) -> None:
        """Begins to send. Needs the session to be started."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"trace {self._group}")

    async def close(self) -> None:
        """Sends what is left, for a moment, and ends."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        try:
            async with asyncio.timeout(CLOSE_S):
                while self._records:
                    await self._flush()
        except TimeoutError:
            self.dropped += len(self._records)
        if self.dropped:
            logger.warning("trace records dropped group=%s count=%d", self._group, self.dropped)

    # --- what happens -------------------------------------------------------------------------

    def sending(
        self, message: Message, message_id: str, future: asyncio.Future[SendResult]
    ) -> None:
        """Notes a send once it is decided."""
        began_ms, began = self._session.wall_ms(), self._session.now_ms()

        def decided(done: asyncio.Future[SendResult]) -> None:
            if done.cancelled():
                return
            failed = done.exception() is not None
            offset_id = "" if failed else done.result().offset_message_id
            self._add(
                Published(
                    time_ms=began_ms,
                    group=self._group,
                    topic=message.topic,
                    message_id=message_id,
                    tags=message.tags,
                    keys=" ".join(message.keys),
                    store_host=_host_of(offset_id),
                    size_bytes=len(message.body),
                    took_ms=self._session.now_ms() - began,
                    offset_message_id=offset_id,
                    success=not failed,
                )
            )

        if message.topic != TRACE_TOPIC:
            future.add_done_callback(decided)

    def handed(self, message: ReceivedMessage) -> Handed:
        """Notes that a message is handed to a handler."""
        handed = Handed(f"{self._prefix}{next(self._numbers):016X}", self._session.now_ms())
        self._add(
            Delivering(
                time_ms=self._session.wall_ms(),
                group=self._group,
                request_id=handed.request_id,
                message_id=message.message_id,
                retries=message.reconsume_times,
                keys=" ".join(message.keys),
            )
        )
        return handed

    def finished(self, handed: Handed, message: ReceivedMessage, *, success: bool) -> None:
        """Notes that a handler is done with a message."""
        self._add(
            Delivered(
                request_id=handed.request_id,
                message_id=message.message_id,
                took_ms=self._session.now_ms() - handed.began_ms,
                success=success,
                keys=" ".join(message.keys),
                outcome=CONSUMED if success else FAILED,
                time_ms=self._session.wall_ms(),
                group=self._group,
            )
        )

    # --- inside -------------------------------------------------------------------------------

    def _add(self, record: Record) -> None:
        if len(self._records) >= RECORDS_MAX:
            self.dropped += 1
        else:
            self._records.append(record)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            while self._records:
                await self._flush()

    async def _flush(self) -> None:
        count = min(len(self._records), RECORDS_PER_MESSAGE)
        batch = [self._records.popleft() for _ in range(count)]
        try:
            await self._send(batch)
        except DLedgerError as error:
            self.dropped += len(batch)
            logger.debug("trace not sent group=%s error=%s", self._group, error)

    async def _send(self, batch: Sequence[Record]) -> None:
        route = await self._session.route(TRACE_TOPIC)
        names = sorted({queue.broker_name for queue in route.publish_queues})
        if not names:
            raise RouteNotFoundError(f"no broker takes {TRACE_TOPIC}")
        self._turn += 1
        header = SendMessageHeaderV2(
            producer_group=f"{_GROUP}-{self._group}"[:120],
            topic=TRACE_TOPIC,
            queue_id=-1,
            born_timestamp_ms=self._session.wall_ms(),
            properties=encode_properties({Property.KEYS: _keys(batch)}).decode(),
        )
        await self._session.call_leader(
            names[self._turn % len(names)], RequestCode.SEND_MESSAGE_V2, header, encode_trace(batch)
        )


def _keys(batch: Sequence[Record]) -> str:
    """Returns the ids and keys by which the records are found again."""
    words: dict[str, None] = {}
    for record in batch:
        words.update(dict.fromkeys((record.message_id, *record.keys.split())))
    words.pop("", None)
    text = ""
    for word in words:
        if len(text) + len(word) >= _KEYS_LENGTH_MAX:
            break
        text += f" {word}"
    return text[1:]


def _host_of(offset_id: str) -> str:
    try:
        ip, port, _ = parse_offset_message_id(offset_id.partition(",")[0])
    except (InvalidParameterError, ValueError):
        return ""
    return f"{ip}:{port}"
