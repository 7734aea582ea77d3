"""What a consumer answers when brokers ask on behalf of admin tools: 221, 307 and 309."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dledger.client.process_queue import ProcessQueue
from dledger.client.session import ClientSession
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.message import ReceivedMessage, decode_stored
from dledger.model import MessageQueue
from dledger.remoting.admin_headers import (
    ConsumeDirectlyHeader,
    GetConsumerStatusHeader,
    GetRunningInfoHeader,
)
from dledger.remoting.bodies import SubscriptionData
from dledger.remoting.bodies.admin import (
    DirectResult,
    ProcessQueueInfo,
    RunningInfo,
    encode_client_offsets,
    encode_direct_result,
    encode_running_info,
)
from dledger.remoting.client import ClientConnection
from dledger.remoting.commands import Command

_H = TypeVar("_H", GetRunningInfoHeader, GetConsumerStatusHeader, ConsumeDirectlyHeader)
# Told why processing failed, or None if it did not.
Ended = Callable[[str | None], None]


@dataclass(frozen=True, kw_only=True)
class MemberView:
    """What there is to say about one member of a group.

    Attributes:
        group: Its group.
        ordered: Whether it consumes in order.
        started_ms: When it started.
        subscriptions: As in its heartbeats.
        windows: The queues it holds now.
        hand_over: Puts a message before the consumer, out of turn, and has its end told; None if
            it cannot.
    """

    group: str
    ordered: bool
    started_ms: int
    subscriptions: Sequence[SubscriptionData]
    windows: Callable[[], Mapping[MessageQueue, ProcessQueue]]
    hand_over: Callable[[ProcessQueue, ReceivedMessage, Ended], None] | None


class MemberAnswers:
    """Answers for one member."""

    def __init__(self, session: ClientSession, view: MemberView) -> None:
        self._session = session
        self._view = view

    def register(self) -> None:
        """Makes the session hand these requests here."""
        handlers = self._session.request_handlers
        handlers[RequestCode.GET_CONSUMER_RUNNING_INFO] = self._running_info
        handlers[RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT] = self._offsets
        handlers[RequestCode.CONSUME_MESSAGE_DIRECTLY] = self._consume

    def _running_info(self, connection: ClientConnection, command: Command) -> None:
        """307: what this consumer holds."""
        header = self._checked(connection, command, GetRunningInfoHeader)
        if header is None:
            return
        view = self._view
        info = RunningInfo(
            properties={
                "PROP_NAMESERVER_ADDR": ";".join(self._session.nameservers),
                "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
                "PROP_CONSUMEORDERLY": str(view.ordered).lower(),
                "PROP_THREADPOOL_CORE_SIZE": str(threading.active_count()),
                "PROP_CLIENT_VERSION": "dledger",
                "PROP_CONSUMER_START_TIMESTAMP": str(view.started_ms),
            },
            subscriptions=list(view.subscriptions),
            queues={queue: _held(window) for queue, window in sorted(view.windows().items())},
            stacks=_stacks() if header.wants_stacks else None,
        )
        connection.reply(command, body=encode_running_info(info))

    def _offsets(self, connection: ClientConnection, command: Command) -> None:
        """221: the offsets of a topic's queues as this consumer has them."""
        header = self._checked(connection, command, GetConsumerStatusHeader)
        if header is None:
            return
        windows = self._view.windows().items()
        held = {queue: w.commit_offset for queue, w in windows if queue.topic == header.topic}
        connection.reply(command, body=encode_client_offsets(held))

    def _consume(self, connection: ClientConnection, command: Command) -> None:
        """309: lets the consumer process one message out of turn; its offsets stay."""
        header = self._checked(connection, command, ConsumeDirectlyHeader)
        if header is None:
            return
        if self._view.hand_over is None:
            remark = "an ordered consumer takes no message out of turn"
            connection.reply(command, ResponseCode.SYSTEM_ERROR, remark=remark)
            return
        try:
            message = decode_stored(command.body)
        except DLedgerError as error:
            connection.reply(command, ResponseCode.SYSTEM_ERROR, remark=str(error))
            return
        message.broker_name = header.broker_name
        began_ms = self._session.now_ms()

        def ended(failure: str | None) -> None:
            result = DirectResult(
                result="CR_SUCCESS" if failure is None else "CR_LATER",
                remark=failure,
                took_ms=self._session.now_ms() - began_ms,
            )
            connection.reply(command, body=encode_direct_result(result))

        queue = MessageQueue(message.topic, header.broker_name, message.queue_id)
        window = ProcessQueue(queue, message.queue_offset, messages_max=1, bytes_max=1)
        self._view.hand_over(window, message, ended)

    def _checked(self, connection: ClientConnection, command: Command, kind: type[_H]) -> _H | None:
        """Returns a request's header, or answers it: it is malformed or meant for another group."""
        remark = ""
        try:
            header = command.header(kind)
            if header.group == self._view.group:
                return header
            remark = f"this client is not a member of group {header.group}"
        except DLedgerError as error:
            remark = str(error)
        connection.reply(command, ResponseCode.SYSTEM_ERROR, remark=remark)
        return None


def _held(window: ProcessQueue) -> ProcessQueueInfo:
    return ProcessQueueInfo(
        commit_offset=window.commit_offset,
        cached_min=window.commit_offset,
        cached_max=max(window.commit_offset, window.next_offset - 1),
        cached_count=window.unfinished_count,
        dropped=window.dropped,
        last_consume_ms=window.finished_ms,
    )


def _stacks() -> str:
    """Returns where every thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"{names.get(number, number)}\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sorted(sys._current_frames().items())
    ]
    return "\n".join(parts)
