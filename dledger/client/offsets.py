"""A group's offsets at the brokers: committed ones, and the bounds of queues."""

from __future__ import annotations

import datetime

from dledger.client.session import ClientSession
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import BrokerResponseError, InvalidParameterError
from dledger.model import ConsumeFrom, MessageQueue
from dledger.remoting.headers import (
    GetMaxOffsetHeader,
    GetMinOffsetHeader,
    OffsetResponse,
    QueryConsumerOffsetHeader,
    SearchOffsetHeader,
    UpdateConsumerOffsetHeader,
)


class Offsets:
    """Asks the leaders, following fail-overs.

    Every method raises `BrokerResponseError` if the leader refuses, and `ConnectFailedError`,
    `ConnectionLostError` or `RequestTimeoutError` if no leader answers in time.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def committed(self, group: str, queue: MessageQueue) -> int | None:
        """Returns the next offset the group will consume; `None` if it never committed one."""
        header = QueryConsumerOffsetHeader(
            consumer_group=group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            set_zero_if_not_found=False,
        )
        try:
            response = await self._session.call_leader(
                queue.broker_name, RequestCode.QUERY_CONSUMER_OFFSET, header
            )
        except BrokerResponseError as error:
            if error.code == ResponseCode.QUERY_NOT_FOUND:
                return None
            raise
        return response.header(OffsetResponse).offset

    async def commit(
        self, group: str, queue: MessageQueue, offset: int, *, timeout_s: float | None = None
    ) -> None:
        """Sets the next offset the group will consume, in either direction.

        Durability:
            On return it is committed by a majority. After an error it may be set all the same.
        """
        header = UpdateConsumerOffsetHeader(
            consumer_group=group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            commit_offset=offset,
        )
        await self._session.call_leader(
            queue.broker_name, RequestCode.UPDATE_CONSUMER_OFFSET, header, timeout_s=timeout_s
        )

    async def flush(self) -> None:
        """Makes what was committed as durable as it gets; brokers have done so already."""

    def close(self) -> None:
        """Ends it; there is nothing to end where brokers keep the offsets."""

    async def minimum(self, queue: MessageQueue) -> int:
        """Returns the offset of the oldest message held."""
        header = GetMinOffsetHeader(topic=queue.topic, queue_id=queue.queue_id)
        response = await self._session.call_leader(
            queue.broker_name, RequestCode.GET_MIN_OFFSET, header
        )
        return response.header(OffsetResponse).offset

    async def maximum(self, queue: MessageQueue) -> int:
        """Returns the offset of the next message to come."""
        header = GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.queue_id)
        response = await self._session.call_leader(
            queue.broker_name, RequestCode.GET_MAX_OFFSET, header
        )
        return response.header(OffsetResponse).offset

    async def at_time(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Returns the offset of the first message stored at or after a time; else the maximum."""
        header = SearchOffsetHeader(
            topic=queue.topic, queue_id=queue.queue_id, timestamp_ms=timestamp_ms
        )
        response = await self._session.call_leader(
            queue.broker_name, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header
        )
        return response.header(OffsetResponse).offset

    async def first(self, queue: MessageQueue, start: ConsumeFrom, timestamp_ms: int) -> int:
        """Returns where a group that never committed anything begins."""
        match start:
            case ConsumeFrom.EARLIEST:
                return await self.minimum(queue)
            case ConsumeFrom.LATEST:
                return await self.maximum(queue)
            case ConsumeFrom.TIMESTAMP:
                return await self.at_time(queue, timestamp_ms)


def epoch_ms(time: int | datetime.datetime) -> int:
    """Returns milliseconds since the epoch.

    Raises:
        InvalidParameterError: A datetime that does not know its zone, or a negative number.
    """
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            raise InvalidParameterError("a time to seek to needs a time zone")
        time = int(time.timestamp() * 1000)
    if time < 0:
        raise InvalidParameterError(f"{time} ms lies before the epoch")
    return time
