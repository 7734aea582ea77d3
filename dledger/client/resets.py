"""Moves consumer groups, also where brokers know less of it than ours do.

Brokers of Apache RocketMQ only tell members that are online; without any they refuse (206), and
whoever asked commits offsets instead, as its own tools do. Before 5.0 they overlook that a single
queue is meant and move the whole topic; so they are never asked that.
"""

from __future__ import annotations

from dledger.client.offsets import Offsets
from dledger.client.session import ClientSession
from dledger.client.versions import BrokerVersions
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import BrokerResponseError, InvalidParameterError
from dledger.model import ConsumeFrom, MessageQueue
from dledger.remoting.bodies import decode_offset_table
from dledger.remoting.headers import GetConsumerConnectionsHeader
from dledger.remoting.reset_headers import ResetOffsetHeader

_EARLIEST, _LATEST = 0, -1  # times with a meaning of their own
_NOBODY = (ResponseCode.CONSUMER_NOT_ONLINE, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST)


class OffsetResets:
    """Part of `AsyncAdmin`; errors as there."""

    def __init__(self, session: ClientSession, offsets: Offsets) -> None:
        self._session = session
        self._offsets = offsets
        self._versions = BrokerVersions(session)

    async def reset(
        self,
        group: str,
        topic: str,
        timestamp_ms: int,
        queue: MessageQueue | None = None,
        offset: int | None = None,
    ) -> dict[MessageQueue, int]:
        """Moves a group to a time, in all queues of a topic or in one, or to an offset of one.

        Args:
            group, topic: What to move, where.
            timestamp_ms: 0: the beginning; -1: the end.
            queue: Only this queue.
            offset: Instead of the time; only with `queue`.

        Returns:
            The next offset to consume, by queue.
        """
        route = await self._session.route(topic, refresh=True)
        names = {found.broker_name for found in route.subscribe_queues}
        if queue is not None:
            names = {queue.broker_name}
        header = ResetOffsetHeader(
            group=group,
            topic=topic,
            timestamp_ms=timestamp_ms,
            queue_id=None if queue is None else queue.queue_id,
            offset=offset,
        )
        moved: dict[MessageQueue, int] = {}
        for name in sorted(names):
            if queue is not None and await self._versions.is_before_5(name):
                await self._check_offline(group, name)
                moved.update(await self._commit(group, [queue], timestamp_ms, offset))
                continue
            try:
                response = await self._session.call_leader(
                    name, RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header
                )
            except BrokerResponseError as error:
                if error.code != ResponseCode.CONSUMER_NOT_ONLINE:
                    raise
                chosen = [found for found in route.subscribe_queues if found.broker_name == name]
                moved.update(
                    await self._commit(group, [queue] if queue else chosen, timestamp_ms, offset)
                )
            else:
                moved.update(decode_offset_table(response.body))
        return dict(sorted(moved.items()))

    async def _commit(
        self, group: str, queues: list[MessageQueue], timestamp_ms: int, offset: int | None
    ) -> dict[MessageQueue, int]:
        """Sets committed offsets, for a group without members online."""
        start = {_EARLIEST: ConsumeFrom.EARLIEST, _LATEST: ConsumeFrom.LATEST}.get(
            timestamp_ms, ConsumeFrom.TIMESTAMP
        )
        moved: dict[MessageQueue, int] = {}
        for queue in queues:
            target = offset
            if target is None:
                target = await self._offsets.first(queue, start, timestamp_ms)
            await self._offsets.commit(group, queue, target)
            moved[queue] = target
        return moved

    async def _check_offline(self, group: str, broker_name: str) -> None:
        header = GetConsumerConnectionsHeader(consumer_group=group)
        try:
            await self._session.call_leader(
                broker_name, RequestCode.GET_CONSUMER_CONNECTION_LIST, header
            )
        except BrokerResponseError as error:
            if error.code in _NOBODY:
                return
            raise
        raise InvalidParameterError(
            f"{broker_name} can move a single queue only while no member of {group} is online"
        )
