"""Who may read what: checks that pulling and popping share."""

from __future__ import annotations

from broker.catalog import Catalog
from broker.context import BrokerContext
from dledger.codes import Permission
from dledger.errors import (
    GroupNotFoundError,
    InvalidParameterError,
    NotLeaderError,
    PermissionDeniedError,
    TopicNotFoundError,
)
from dledger.message import validate_group
from dledger.model import TopicConfig

_READ = int(Permission.READ)


def readable_topic(
    context: BrokerContext, name: str, queue_id: int, *, any_queue: bool = False
) -> TopicConfig:
    """Returns a topic of which a queue is to be read.

    Args:
        context: The broker's parts.
        name: The topic.
        queue_id: The queue.
        any_queue: Whether -1 stands for all queues.

    Raises:
        NotLeaderError: This replica does not know the topic; the leader may.
        TopicNotFoundError, PermissionDeniedError, InvalidParameterError: Refused.
    """
    topic = context.store.topic(name)
    if topic is None:
        if not context.raft.is_serving:
            raise NotLeaderError(context.raft.leader_id, context.raft.term)
        raise TopicNotFoundError(f"topic[{name}] not exist, apply first please!")
    if not topic.permission & _READ:
        raise PermissionDeniedError(f"the topic[{topic.name}] pulling message is forbidden")
    lowest = -1 if any_queue else 0
    if not lowest <= queue_id < topic.read_queue_count:
        raise InvalidParameterError(
            f"queueId[{queue_id}] is illegal, topic:[{topic.name}] "
            f"topicConfig.readQueueNums:[{topic.read_queue_count}]"
        )
    return topic


def check_group(context: BrokerContext, catalog: Catalog, name: str) -> None:
    """Checks that a group may consume; one that does not exist is created in the background.

    Raises:
        PermissionDeniedError, GroupNotFoundError, InvalidParameterError: Refused.
        PullQuotaExceededError: It has taken out all that it may for now.
    """
    group = context.store.group(name)
    if group is not None:
        if not group.consume_enable:
            raise PermissionDeniedError(f"subscription group no permission, {name}")
        context.quotas.check_pull(group, context.clock.monotonic())
        return
    validate_group(name)
    if not catalog.may_create_group(name):
        raise GroupNotFoundError(f"subscription group [{name}] does not exist")
    catalog.ensure_group_soon(name)


def count_fetched(
    context: BrokerContext, group: str, topic: str, count: int, size_bytes: int
) -> None:
    """Takes note of messages that a group is given, for statistics and its quota."""
    context.statistics.fetched(group, topic, count, size_bytes)
    config = context.store.group(group)
    context.quotas.pulled(config, count, size_bytes, context.clock.monotonic())
