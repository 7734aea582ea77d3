"""The synchronous front of the transaction producer. See `sync`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dledger.client.background import SyncFront
from dledger.client.config import ProducerConfig
from dledger.client.results import SendResult
from dledger.client.topics import Target
from dledger.client.transaction_producer import (
    AsyncTransactionProducer,
    TransactionResult,
    TransactionState,
)
from dledger.message import Message, ReceivedMessage
from dledger.model import SendStatus

LocalTransaction = Callable[[Message, SendResult], TransactionState]
Checker = Callable[[ReceivedMessage], TransactionState]


class TransactionProducer(SyncFront[AsyncTransactionProducer]):
    """Sends messages in transactions from a program without an event loop.

    Local transactions run in the thread that sends; the checker runs in threads of its own.
    Several threads may share one. See `AsyncTransactionProducer`.
    """

    def __init__(
        self,
        group: str,
        *,
        checker: Checker,
        nameserver: str | Sequence[str] | None = None,
        config: ProducerConfig | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing. See `AsyncTransactionProducer`."""

        async def check(message: ReceivedMessage) -> TransactionState:
            return await asyncio.to_thread(checker, message)

        super().__init__(
            f"producer {group}",
            AsyncTransactionProducer(group, checker=check, nameserver=nameserver, config=config),
        )

    def send(
        self,
        message: Message,
        local: LocalTransaction,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        immunity_s: int | None = None,
    ) -> TransactionResult:
        """Sends a message that becomes visible if a local transaction succeeds.

        Arguments and errors as `AsyncTransactionProducer.send`.
        """
        half = self.prepare(message, queue=queue, shard_key=shard_key, immunity_s=immunity_s)
        if half.status is not SendStatus.SEND_OK:
            return self.finish(half, TransactionState.ROLLBACK)
        return self.finish(half, local(message, half))

    def prepare(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        immunity_s: int | None = None,
    ) -> SendResult:
        """Stores the half message only; `finish` is still to be called."""
        return self._loop.run(
            self._inner.prepare(message, queue=queue, shard_key=shard_key, immunity_s=immunity_s)
        )

    def finish(self, half: SendResult, state: TransactionState) -> TransactionResult:
        """Tells the broker what became of a local transaction; repeating it is harmless."""
        return self._loop.run(self._inner.finish(half, state))
