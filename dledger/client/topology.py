"""Topics across broker groups: extending them to a new group, and fixing where keys go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dledger.client.routes import parse_order
from dledger.client.session import ClientSession
from dledger.client.topic_header import topic_header
from dledger.codes import ORDER_TOPIC_NAMESPACE, RequestCode, ResponseCode
from dledger.errors import BrokerResponseError, InvalidParameterError
from dledger.message import validate_topic
from dledger.model import GroupConfig, TopicConfig
from dledger.remoting.bodies import decode_topic_table, encode_group_config
from dledger.remoting.nameserver_headers import (
    DeleteKvConfigHeader,
    GetKvConfigHeader,
    GetKvConfigResponse,
    PutKvConfigHeader,
)

_QUEUES_MAX = 65_536


class Topology:
    """Made by `AsyncAdmin.topology`. Errors as there."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def topics(self, broker_name: str) -> dict[str, TopicConfig]:
        """Returns the topics of one broker group, its own system topics included, by name."""
        response = await self._session.call_leader(broker_name, RequestCode.GET_ALL_TOPIC_CONFIG)
        return dict(decode_topic_table(response.body).topics)

    async def extend(self, broker_name: str, configs: Iterable[TopicConfig]) -> list[str]:
        """Creates topics, as they are elsewhere, in a broker group that lacks them.

        Producers and consumers that run notice with their next look at the route, within 30 s by
        default. Keys of a topic that is not an order topic then lie on other queues than before:
        what was sent before the change may be consumed after what is sent later.

        Args:
            broker_name: The group.
            configs: The topics; one that the group has already stays as it is.

        Returns:
            The topics created.

        Durability:
            On return they are committed by a majority of the group.
        """
        there = await self.topics(broker_name)
        created: list[str] = []
        for config in configs:
            if config.name in there:
                continue
            header = topic_header(config)
            await self._session.call_leader(
                broker_name, RequestCode.UPDATE_AND_CREATE_TOPIC, header
            )
            created.append(config.name)
        return created

    async def extend_groups(self, broker_name: str, configs: Iterable[GroupConfig]) -> None:
        """Creates consumer groups, or changes them to these settings, in one broker group."""
        for config in configs:
            await self._session.call_leader(
                broker_name,
                RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP,
                None,
                encode_group_config(config),
            )

    async def set_order(self, topic: str, queues: Mapping[str, int]) -> None:
        """Makes a topic an order topic: its keys go to these queues, whoever is up or added.

        Order before availability: while a group is down, keys of its queues cannot be sent, instead
        of going to other queues.

        Args:
            topic: The topic.
            queues: Broker group to number of queues; empty makes it an ordinary topic again.

        Raises:
            InvalidParameterError: (definite) A count that makes no sense.

        Durability:
            On return every nameserver has it on disk, if it keeps a data directory.
        """
        validate_topic(topic)
        if not queues:
            header = DeleteKvConfigHeader(namespace=ORDER_TOPIC_NAMESPACE, key=topic)
            await self._session.every_nameserver(RequestCode.DELETE_KV_CONFIG, header)
            return
        for name, count in queues.items():
            if not name or set(name) & set(":; ") or not 0 < count <= _QUEUES_MAX:
                raise InvalidParameterError(f"{name}:{count} is no part of an order topic")
        value = ";".join(f"{name}:{count}" for name, count in queues.items())
        await self._session.every_nameserver(
            RequestCode.PUT_KV_CONFIG,
            PutKvConfigHeader(namespace=ORDER_TOPIC_NAMESPACE, key=topic, value=value),
        )

    async def order(self, topic: str) -> dict[str, int]:
        """Returns an order topic's queues by broker group; empty for other topics."""
        header = GetKvConfigHeader(namespace=ORDER_TOPIC_NAMESPACE, key=topic)
        try:
            response = await self._session.ask_nameserver(RequestCode.GET_KV_CONFIG, header)
        except BrokerResponseError as error:
            if error.code == ResponseCode.QUERY_NOT_FOUND:
                return {}
            raise
        return parse_order(response.header(GetKvConfigResponse).value)
