"""Extends topics and consumer groups to a broker group that is new in a cluster."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from broker.names import is_system_group, is_system_topic
from cli.errors import UsageError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.model import TopicConfig

_MADE_BY_BROKERS = ("%RETRY%", "%DLQ%")  # with the first member, with the first dead letter


async def extend(admin: AsyncAdmin, broker_name: str, names: Collection[str] = ()) -> list[str]:
    """Gives a broker group the topics and consumer groups of the others.

    Args:
        admin: A started client.
        broker_name: The group.
        names: Only these topics; by default all that people made.

    Returns:
        The topics that it did not have, sorted.

    Raises:
        UsageError: There is no such broker group, or no such topic.
    """
    brokers = (await admin.cluster()).brokers
    if broker_name not in brokers:
        raise UsageError(f"there is no broker group {broker_name}; known: {sorted(brokers)}")
    topology = admin.topology()
    found: dict[str, TopicConfig] = {}
    for other in sorted(brokers):
        if other != broker_name:
            for name, config in (await topology.topics(other)).items():
                found.setdefault(name, config)
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise UsageError(f"no other broker group has {', '.join(unknown)}")
    cluster = brokers[broker_name].cluster
    chosen = names or [
        name
        for name in found
        if not name.startswith(_MADE_BY_BROKERS)
        and not any(
            is_system_topic(name, cluster_name=cluster, broker_name=other) for other in brokers
        )
    ]
    # The consumer groups first: their members may come as soon as a topic is there.
    groups = [group for group in await admin.groups() if not is_system_group(group.name)]
    await topology.extend_groups(broker_name, groups)
    return sorted(await topology.extend(broker_name, [found[name] for name in chosen]))
