"""RECALL_MESSAGE (370): takes a delayed message back before it is delivered."""

from __future__ import annotations

from broker.context import BrokerContext
from broker.timers import TimerDelivery
from dledger.errors import (
    DLedgerError,
    InvalidParameterError,
    NotFoundError,
    PermissionDeniedError,
    TopicNotFoundError,
)
from dledger.message import Property, decode_handle, decode_properties, stored_properties
from dledger.remoting.commands import Command
from dledger.remoting.headers import RecallMessageHeader
from dledger.remoting.server import Connection
from store.timer_table import Timer


class RecallProcessor:
    """Recalls messages. Runs on the serving leader only."""

    def __init__(self, context: BrokerContext, timers: TimerDelivery) -> None:
        self._context = context
        self._timers = timers

    def recall(self, connection: Connection, command: Command) -> None:
        """Answers once the message will certainly not be delivered.

        All waiting copies of one send are taken back: a producer that sends again after an
        unknown outcome leaves several.

        Raises:
            NotFoundError: It was delivered, or recalled before, or never waited.
            DLedgerError: Refused; nothing was proposed.
        """
        header = command.header(RecallMessageHeader)
        config = self._context.config
        if not config.timers.recall_enable:
            raise PermissionDeniedError("recall failed, operation is forbidden")
        self._context.gate.check()
        handle = decode_handle(header.recall_handle)
        if handle.topic != header.topic:
            raise InvalidParameterError("recall failed, topic and handle do not match")
        if handle.broker_name != config.broker_name:
            raise InvalidParameterError(f"recall failed, not for {config.broker_name}")
        if self._context.store.topic(handle.topic) is None:
            raise TopicNotFoundError(f"recall failed, the topic[{handle.topic}] not exist")
        found = [
            timer
            for timer in self._context.store.timers.find(handle.unique_key.encode())
            if _matches(timer, handle.topic, handle.unique_key)
        ]
        missing = "recall failed, the message does not wait any more"
        if not found:
            raise NotFoundError(missing)

        def recalled(count: int, error: DLedgerError | None) -> None:
            if error is None and not count:
                error = NotFoundError(missing)
            if error is not None:
                connection.reply_error(command, error)
            else:
                connection.reply(command, 0, {"msgId": handle.unique_key})

        self._timers.cancel(found, recalled)


def _matches(timer: Timer, topic: str, unique_key: str) -> bool:
    properties = decode_properties(stored_properties(timer.stored))
    return (
        properties.get(Property.REAL_TOPIC) == topic
        and properties.get(Property.UNIQUE_KEY) == unique_key
    )
