"""LOCK_BATCH_MQ (41) and UNLOCK_BATCH_MQ (42): locks for ordered consumption. Leader only."""

from __future__ import annotations

from broker import locks
from broker.context import BrokerContext
from broker.feature_commands import encode_feature
from dledger.errors import InvalidParameterError, InvariantError
from dledger.message import validate_group
from dledger.model import MessageQueue
from dledger.remoting.bodies import LockBatchBody, decode_lock_batch, encode_locked_queues
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

_CLIENT_ID_LENGTH_MAX = 512


class LockProcessor:
    """Grants and takes back locks."""

    def __init__(self, context: BrokerContext, clock: locks.LockClock) -> None:
        self._context = context
        self._clock = clock

    async def lock(self, connection: Connection, command: Command) -> None:
        """41: locks queues for a client, or renews its locks; answers those it now holds.

        Queues of other brokers, and such as do not exist, are never held.

        Durability: a lock that was answered is committed; the next leader knows it.
        """
        body, wanted = self._wanted(command)
        granted: object = []
        if wanted:
            self._context.gate.check()
            granted = await self._context.raft.submit(
                encode_feature(
                    locks.LockQueues(
                        body.consumer_group, body.client_id, self._clock.now_ms(), wanted
                    )
                )
            )
        if not isinstance(granted, list):
            raise InvariantError(f"locking returned {granted!r}")
        name = self._context.config.broker_name
        held = [MessageQueue(topic, name, queue_id) for topic, queue_id in granted]
        connection.reply(command, body=encode_locked_queues(held))

    async def unlock(self, connection: Connection, command: Command) -> None:
        """42: gives a client's locks back; those of others stay as they are."""
        body, wanted = self._wanted(command)
        if wanted:
            self._context.gate.check()
            await self._context.raft.submit(
                encode_feature(locks.UnlockQueues(body.consumer_group, body.client_id, wanted))
            )
        connection.reply(command)

    def _wanted(self, command: Command) -> tuple[LockBatchBody, list[tuple[str, int]]]:
        body = decode_lock_batch(command.body)
        validate_group(body.consumer_group)
        if not 0 < len(body.client_id) <= _CLIENT_ID_LENGTH_MAX:
            raise InvalidParameterError(f"clientId must have 1 to {_CLIENT_ID_LENGTH_MAX} letters")
        if len(body.queues) > locks.QUEUES_PER_COMMAND_MAX:
            raise InvalidParameterError(f"more than {locks.QUEUES_PER_COMMAND_MAX} queues to lock")
        return body, locks.acceptable(
            body.queues,
            broker_name=self._context.config.broker_name,
            queue_count=self._queue_count,
        )

    def _queue_count(self, topic: str) -> int:
        config = self._context.store.topic(topic)
        return 0 if config is None else max(config.read_queue_count, config.write_queue_count)
