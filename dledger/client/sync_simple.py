"""The synchronous front of the simple consumer. See `sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dledger.client.background import SyncFront
from dledger.client.config import SimpleConsumerConfig
from dledger.client.filters import Sql
from dledger.client.simple_consumer import AsyncSimpleConsumer
from dledger.message import ReceivedMessage
from dledger.model import ConsumeFrom


class SimpleConsumer(SyncFront[AsyncSimpleConsumer]):
    """Receives and acknowledges messages in a program without an event loop.

    Guarantees, arguments and errors as `AsyncSimpleConsumer`. Several threads may share one.
    """

    def __init__(
        self,
        group: str,
        *,
        subscriptions: Mapping[str, str | Sql],
        nameserver: str | Sequence[str] | None = None,
        consume_from: ConsumeFrom = ConsumeFrom.EARLIEST,
        config: SimpleConsumerConfig | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing. See `AsyncSimpleConsumer`."""
        super().__init__(
            f"consumer {group}",
            AsyncSimpleConsumer(
                group,
                subscriptions=subscriptions,
                nameserver=nameserver,
                consume_from=consume_from,
                config=config,
            ),
        )

    def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """Receives from this topic, too. See `AsyncSimpleConsumer.subscribe`."""
        self._loop.run(self._inner.subscribe(topic, expression))

    def unsubscribe(self, topic: str) -> None:
        """Receives from this topic no more."""
        self._loop.run(self._inner.unsubscribe(topic))

    def receive(
        self, max_messages: int = 16, *, invisible_s: float = 30.0, wait_s: float = 20.0
    ) -> list[ReceivedMessage]:
        """Returns messages that nobody else gets meanwhile. See `AsyncSimpleConsumer.receive`."""
        return self._loop.run(
            self._inner.receive(max_messages, invisible_s=invisible_s, wait_s=wait_s)
        )

    def ack(self, message: ReceivedMessage) -> None:
        """Says that a message is processed. See `AsyncSimpleConsumer.ack`."""
        self._loop.run(self._inner.ack(message))

    def change_invisible_duration(self, message: ReceivedMessage, seconds: float) -> None:
        """Sets for how long a message is out. See the asynchronous twin."""
        self._loop.run(self._inner.change_invisible_duration(message, seconds))
