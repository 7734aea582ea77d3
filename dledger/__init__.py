"""Apache RocketMQ's model and wire protocol on a Raft-replicated log: the public face.

Names are loaded when first used, so that importing `dledger.message`, say, in a server does not
load the clients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dledger import errors
    from dledger.client.admin import AsyncAdmin
    from dledger.client.config import (
        AdminConfig,
        ProducerConfig,
        PullConsumerConfig,
        PushConsumerConfig,
        SessionConfig,
        SimpleConsumerConfig,
    )
    from dledger.client.filters import Sql
    from dledger.client.producer import AsyncProducer
    from dledger.client.pull_consumer import AsyncPullConsumer
    from dledger.client.push_consumer import AsyncPushConsumer
    from dledger.client.results import (
        ProducerStatistics,
        QueueBounds,
        QueueProgress,
        SendResult,
        TopicDescription,
    )
    from dledger.client.simple_consumer import AsyncSimpleConsumer
    from dledger.client.sync import Producer, PullConsumer, PushConsumer
    from dledger.client.sync_admin import Admin
    from dledger.client.sync_simple import SimpleConsumer
    from dledger.client.sync_transactions import TransactionProducer
    from dledger.client.transaction_producer import (
        AsyncTransactionProducer,
        TransactionResult,
        TransactionState,
    )
    from dledger.errors import DLedgerError
    from dledger.message import Message, ReceivedMessage
    from dledger.model import (
        ConsumeFrom,
        GroupConfig,
        MessageModel,
        MessageQueue,
        SendStatus,
        TopicConfig,
    )

__all__ = [
    "Admin",
    "AdminConfig",
    "AsyncAdmin",
    "AsyncProducer",
    "AsyncPullConsumer",
    "AsyncPushConsumer",
    "AsyncSimpleConsumer",
    "AsyncTransactionProducer",
    "ConsumeFrom",
    "DLedgerError",
    "GroupConfig",
    "Message",
    "MessageModel",
    "MessageQueue",
    "Producer",
    "ProducerConfig",
    "ProducerStatistics",
    "PullConsumer",
    "PullConsumerConfig",
    "PushConsumer",
    "PushConsumerConfig",
    "QueueBounds",
    "QueueProgress",
    "ReceivedMessage",
    "SendResult",
    "SendStatus",
    "SessionConfig",
    "SimpleConsumer",
    "SimpleConsumerConfig",
    "Sql",
    "TopicConfig",
    "TopicDescription",
    "TransactionProducer",
    "TransactionResult",
    "TransactionState",
    "errors",
]

_HOMES = {
    "dledger.client.admin": ("AsyncAdmin",),
    "dledger.client.config": (
        "AdminConfig",
        "ProducerConfig",
        "PullConsumerConfig",
        "PushConsumerConfig",
        "SessionConfig",
        "SimpleConsumerConfig",
    ),
    "dledger.client.filters": ("Sql",),
    "dledger.client.producer": ("AsyncProducer",),
    "dledger.client.pull_consumer": ("AsyncPullConsumer",),
    "dledger.client.push_consumer": ("AsyncPushConsumer",),
    "dledger.client.results": (
        "ProducerStatistics",
        "QueueBounds",
        "QueueProgress",
        "SendResult",
        "TopicDescription",
    ),
    "dledger.client.simple_consumer": ("AsyncSimpleConsumer",),
    "dledger.client.sync": ("Producer", "PullConsumer", "PushConsumer"),
    "dledger.client.sync_admin": ("Admin",),
    "dledger.client.sync_simple": ("SimpleConsumer",),
    "dledger.client.sync_transactions": ("TransactionProducer",),
    "dledger.client.transaction_producer": (
        "AsyncTransactionProducer",
        "TransactionResult",
        "TransactionState",
    ),
    "dledger.errors": ("DLedgerError",),
    "dledger.message": ("Message", "ReceivedMessage"),
    "dledger.model": (
        "ConsumeFrom",
        "GroupConfig",
        "MessageModel",
        "MessageQueue",
        "SendStatus",
        "TopicConfig",
    ),
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("dledger.errors")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'dledger' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
