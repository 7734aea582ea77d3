"""The synchronous front of the admin client. See `sync`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dledger.client.admin import AsyncAdmin
from dledger.client.background import BackgroundLoop, SyncFront
from dledger.client.config import AdminConfig
from dledger.client.dead_letters import DeadLetter, DeadLetterQueue, DeadLetters, ReplayTarget
from dledger.client.results import QueueBounds, QueueProgress, TopicDescription
from dledger.message import ReceivedMessage
from dledger.model import ConsumeFrom, GroupConfig, MessageQueue, TopicConfig
from dledger.remoting.bodies import ClusterInfo, ConnectionList
from dledger.remoting.members import GroupConfiguration


class Admin(SyncFront[AsyncAdmin]):
    """Administers a cluster from a program without an event loop. See `AsyncAdmin`."""

    def __init__(
        self,
        *,
        nameserver: str | Sequence[str] | None = None,
        config: AdminConfig | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing."""
        super().__init__("admin", AsyncAdmin(nameserver=nameserver, config=config))

    def create_topic(
        self,
        name: str,
        *,
        queue_count: int = 4,
        permission: int = 6,
        broker_names: Sequence[str] | None = None,
        wait_visible: bool = True,
    ) -> None:
        """Creates a topic or changes an existing one. See `AsyncAdmin.create_topic`."""
        self._loop.run(
            self._inner.create_topic(
                name,
                queue_count=queue_count,
                permission=permission,
                broker_names=broker_names,
                wait_visible=wait_visible,
            )
        )

    def update_topic(self, config: TopicConfig) -> None:
        """Changes all settings of a topic."""
        self._loop.run(self._inner.update_topic(config))

    def delete_topic(self, name: str) -> None:
        """Deletes a topic with its messages, everywhere."""
        self._loop.run(self._inner.delete_topic(name))

    def topics(self) -> list[str]:
        """Returns the names of all topics, sorted."""
        return self._loop.run(self._inner.topics())

    def topic(self, name: str) -> dict[str, TopicConfig]:
        """Returns a topic's settings by broker group."""
        return self._loop.run(self._inner.topic(name))

    def describe_topics(self) -> list[TopicDescription]:
        """Returns all topics of all groups."""
        return self._loop.run(self._inner.describe_topics())

    def queues(self, topic: str) -> list[MessageQueue]:
        """Returns a topic's readable queues, sorted."""
        return self._loop.run(self._inner.queues(topic))

    def bounds(self, topic: str) -> list[QueueBounds]:
        """Returns the offsets each readable queue of a topic holds."""
        return self._loop.run(self._inner.bounds(topic))

    def offset_min(self, queue: MessageQueue) -> int:
        """Returns the offset of the oldest message held."""
        return self._loop.run(self._inner.offset_min(queue))

    def offset_max(self, queue: MessageQueue) -> int:
        """Returns the offset of the next message to come."""
        return self._loop.run(self._inner.offset_max(queue))

    def offset_at(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Returns the offset of the first message stored at or after a time."""
        return self._loop.run(self._inner.offset_at(queue, timestamp_ms))

    def committed(self, group: str, queue: MessageQueue) -> int | None:
        """Returns a group's committed offset of a queue; `None` if there is none."""
        return self._loop.run(self._inner.committed(group, queue))

    def set_committed(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Sets a group's committed offset."""
        self._loop.run(self._inner.set_committed(group, queue, offset))

    def create_group(self, config: GroupConfig) -> None:
        """Creates a consumer group or changes an existing one."""
        self._loop.run(self._inner.create_group(config))

    def delete_group(self, name: str, *, clean_offsets: bool = True) -> None:
        """Deletes a consumer group."""
        self._loop.run(self._inner.delete_group(name, clean_offsets=clean_offsets))

    def groups(self) -> list[GroupConfig]:
        """Returns all consumer groups, by name."""
        return self._loop.run(self._inner.groups())

    def topic_consumers(self, topic: str) -> list[str]:
        """Returns the names of groups that consume a topic, sorted."""
        return self._loop.run(self._inner.topic_consumers(topic))

    def consumer_progress(self, group: str, topic: str = "") -> list[QueueProgress]:
        """Returns how far a consumer group has come in each queue."""
        return self._loop.run(self._inner.consumer_progress(group, topic))

    def reset_offsets(
        self,
        group: str,
        topic: str,
        to: ConsumeFrom | int,
        *,
        queue: MessageQueue | None = None,
    ) -> dict[MessageQueue, int]:
        """Moves a consumer group. See `AsyncAdmin.reset_offsets`."""
        return self._loop.run(self._inner.reset_offsets(group, topic, to, queue=queue))

    def move_offset(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Moves a consumer group to an offset of one queue."""
        self._loop.run(self._inner.move_offset(group, queue, offset))

    def clone_offsets(
        self, source: str, target: str, topic: str = "", *, offline: bool = True
    ) -> None:
        """Moves a consumer group to where another one is."""
        self._loop.run(self._inner.clone_offsets(source, target, topic, offline=offline))

    def dead_letters(self) -> SyncDeadLetters:
        """Returns access to the dead letters of consumer groups."""
        return SyncDeadLetters(self._loop, self._inner.dead_letters())

    def set_order(self, topic: str, queues: Mapping[str, int]) -> None:
        """Makes a topic an order topic. See `Topology.set_order`."""
        self._loop.run(self._inner.topology().set_order(topic, queues))

    def order(self, topic: str) -> dict[str, int]:
        """Returns an order topic's queues by broker group; empty for other topics."""
        return self._loop.run(self._inner.topology().order(topic))

    def consumer_connections(self, group: str) -> ConnectionList | None:
        """Returns the members of a consumer group that are online."""
        return self._loop.run(self._inner.consumer_connections(group))

    def message(self, message_id: str, topic: str | None = None) -> ReceivedMessage:
        """Returns one message by either of its ids. See `AsyncAdmin.message`."""
        return self._loop.run(self._inner.message(message_id, topic))

    def messages_by_key(
        self,
        topic: str,
        key: str,
        *,
        unique: bool = False,
        count_max: int = 64,
        begin_ms: int = 0,
        end_ms: int = 2**63 - 1,
    ) -> list[ReceivedMessage]:
        """Returns messages of a topic that have a key. See `AsyncAdmin.messages_by_key`."""
        return self._loop.run(
            self._inner.messages_by_key(
                topic, key, unique=unique, count_max=count_max, begin_ms=begin_ms, end_ms=end_ms
            )
        )

    def cluster(self) -> ClusterInfo:
        """Returns all broker groups with their addresses; id 0 is the leader."""
        return self._loop.run(self._inner.cluster())

    def transfer_leader(self, broker_name: str, replica_id: str | None = None) -> str:
        """Hands the leadership of a broker group over. See `AsyncAdmin.transfer_leader`."""
        return self._loop.run(self._inner.transfer_leader(broker_name, replica_id))

    def replicas(self, broker_name: str) -> GroupConfiguration:
        """Returns who belongs to a broker group. See `AsyncAdmin.replicas`."""
        return self._loop.run(self._inner.replicas(broker_name))

    def add_replica(
        self, broker_name: str, replica_id: str, address: str, raft_address: str
    ) -> GroupConfiguration:
        """Adds a replica to a broker group. See `AsyncAdmin.add_replica`."""
        return self._loop.run(
            self._inner.add_replica(broker_name, replica_id, address, raft_address)
        )

    def remove_replica(self, broker_name: str, replica_id: str) -> GroupConfiguration:
        """Removes a replica from a broker group. See `AsyncAdmin.remove_replica`."""
        return self._loop.run(self._inner.remove_replica(broker_name, replica_id))

    def broker_runtime_info(self, address: str) -> dict[str, str]:
        """Returns what one replica says of itself, as text by name."""
        return self._loop.run(self._inner.broker_runtime_info(address))


class SyncDeadLetters:
    """Reads and replays dead letters. Made by `Admin.dead_letters`; see `DeadLetters`."""

    def __init__(self, loop: BackgroundLoop, inner: DeadLetters) -> None:
        self._loop = loop
        self._inner = inner

    def queues(self, group: str) -> list[DeadLetterQueue]:
        """Returns the queues of a group's dead letters; none if it never had any."""
        return self._loop.run(self._inner.queues(group))

    def read(self, queue: DeadLetterQueue, start: int = 0) -> Iterator[DeadLetter]:
        """Yields the dead letters of a queue from an offset up to the end as it was."""
        letters = self._inner.read(queue, start)

        async def following() -> DeadLetter | None:
            return await anext(letters, None)

        while (letter := self._loop.run(following())) is not None:
            yield letter

    def replay(self, letter: DeadLetter, target: ReplayTarget) -> None:
        """Sends a dead letter again. See `DeadLetters.replay`."""
        self._loop.run(self._inner.replay(letter, target))

    def note_replayed(self, queue: DeadLetterQueue, offset: int) -> None:
        """Remembers that the dead letters before an offset were replayed."""
        self._loop.run(self._inner.note_replayed(queue, offset))
