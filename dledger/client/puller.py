"""One pull: from whichever replica can answer it."""

from __future__ import annotations

import asyncio

from dledger.client.filters import Subscription
from dledger.client.results import PullResult
from dledger.client.session import ClientSession
from dledger.codes import PullFlag, RequestCode, ResponseCode
from dledger.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    RemoteProtocolError,
    RequestTimeoutError,
)
from dledger.message import ReceivedMessage, decode_run
from dledger.model import MessageQueue, PullStatus
from dledger.remoting.commands import Command
from dledger.remoting.errors import response_error
from dledger.remoting.headers import PullMessageHeader, PullMessageResponse, to_ext

_STATUS = {
    int(ResponseCode.SUCCESS): PullStatus.FOUND,
    int(ResponseCode.PULL_NOT_FOUND): PullStatus.NO_NEW_MESSAGE,
    int(ResponseCode.PULL_RETRY_IMMEDIATELY): PullStatus.NO_MATCHED_MESSAGE,
    int(ResponseCode.PULL_OFFSET_MOVED): PullStatus.OFFSET_ILLEGAL,
}
_FLAGS = int(PullFlag.SUSPEND | PullFlag.SUBSCRIPTION)
_GRACE_S = 5.0  # how much longer than the broker's own limit we wait for an answer


class Puller:
    """Pulls for one consumer group.

    Any replica may answer a pull: all show committed messages only. The leader is asked first;
    one that cannot be reached is left out until the leader is known again, so reading goes on
    while a group elects.
    """

    def __init__(self, session: ClientSession, group: str) -> None:
        self._session = session
        self._group = group
        self._suggested: dict[MessageQueue, int] = {}

    async def pull(
        self,
        queue: MessageQueue,
        offset: int,
        subscription: Subscription,
        *,
        count_max: int,
        bytes_max: int,
        suspend_s: float,
    ) -> PullResult:
        """Reads messages of a queue from an offset on.

        Args:
            queue: The queue.
            offset: First offset wanted.
            subscription: Which tags are wanted.
            count_max, bytes_max: Bounds of the answer; one message comes whatever its size.
            suspend_s: How long the broker may wait for a message if there is none; 0: not at all.

        Raises:
            BrokerResponseError: The broker refused: no such topic, queue or permission.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: Nobody answered; trying
                again asks another replica.
        """
        header = PullMessageHeader(
            consumer_group=self._group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            queue_offset=offset,
            message_count_max=count_max,
            sys_flag=_FLAGS if suspend_s > 0 else int(PullFlag.SUBSCRIPTION),
            suspend_timeout_ms=int(suspend_s * 1000),
            sub_version=subscription.version,
            subscription=subscription.expression,
            expression_type=subscription.expression_type,
            bytes_max=bytes_max,
        )
        address = await self._address(queue)
        try:
            response = await self._session.long_poll(
                queue.broker_name,
                address,
                RequestCode.PULL_MESSAGE,
                to_ext(header),
                timeout_s=suspend_s + _GRACE_S,
            )
        except (ConnectFailedError, ConnectionLostError, RequestTimeoutError) as error:
            self._session.note_failure(queue.broker_name, address, error)
            self._session.seek_leader(queue.broker_name)
            self._suggested.pop(queue, None)
            raise
        return self._result(response, address, queue, offset, subscription)

    def _result(
        self,
        response: Command,
        address: str,
        queue: MessageQueue,
        offset: int,
        subscription: Subscription,
    ) -> PullResult:
        """Returns what an answer says; notes which replica it suggests."""
        status = _STATUS.get(response.code)
        if status is None:
            raise response_error(response, address)
        bounds = response.header(PullMessageResponse)
        self._suggested[queue] = bounds.suggest_which_broker_id
        messages: list[ReceivedMessage] = []
        if status is PullStatus.FOUND:
            messages = _decode(response.body, queue, offset, subscription)
            if bounds.next_begin_offset <= offset:
                raise RemoteProtocolError(
                    f"pull of {queue} at {offset} found messages but goes on at "
                    f"{bounds.next_begin_offset}"
                )
        return PullResult(
            status,
            messages,
            bounds.next_begin_offset,
            bounds.offset_min,
            bounds.offset_max,
            bounds.suggest_which_broker_id,
        )

    async def _address(self, queue: MessageQueue) -> str:
        name = queue.broker_name
        book = self._session.routes.book(name)
        suggested = self._suggested.get(queue, 0)
        if suggested:
            route = self._session.routes.route(queue.topic)
            group = route.groups.get(name, {}) if route is not None else {}
            if suggested in group:
                return group[suggested]
        if book.leader is not None:
            return book.leader
        reachable = book.reachable(self._session.now_ms())
        if reachable:
            return reachable[0]
        if not book.addresses:
            await self._session.route(queue.topic, refresh=True)
        try:
            loop = asyncio.get_running_loop()
            return await self._session.leader(name, loop.time() + 1.0)
        except DLedgerError:
            if book.addresses:
                return book.addresses[0]
            raise


def _decode(
    body: bytes, queue: MessageQueue, offset: int, subscription: Subscription
) -> list[ReceivedMessage]:
    """Returns the messages that were asked for; brokers may send some before, or of other tags."""
    messages = decode_run(body, broker_name=queue.broker_name)
    if subscription.tags:
        messages = [message for message in messages if subscription.matches(message.tags)]
    if messages and messages[0].queue_offset >= offset:
        return messages
    return [message for message in messages if message.queue_offset >= offset]
