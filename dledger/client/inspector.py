"""What became of a message, and attributes of topics and groups. Part of the admin client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from dledger.client.session import ClientSession
from dledger.client.topic_header import topic_header
from dledger.codes import DEAD_LETTER_PREFIX, RETRY_PREFIX, RequestCode, ResponseCode
from dledger.errors import (
    BrokerResponseError,
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    RouteNotFoundError,
)
from dledger.message import ReceivedMessage
from dledger.remoting.admin_headers import LocateMessageHeader, LocateMessageResponse
from dledger.remoting.bodies import decode_group_config, encode_group_config
from dledger.remoting.headers import GetGroupConfigHeader, to_ext

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin

_COPIES_MAX = 64
_ASK_S = 2.0


class ReplicaCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica says of a message.

    Attributes:
        address: Of the replica.
        replica_id: Its id; empty if it did not answer.
        holds: Whether it has the message in its log, applied; None: it did not answer.
        is_durable: Whether it has it on disk.
        is_leader: Whether it leads.
    """

    address: str
    replica_id: str = ""
    holds: bool | None = None
    is_durable: bool = False
    is_leader: bool = False


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message in one consumer group.

    Attributes:
        group: The group.
        consumer_offset: Where it is in the message's queue.
        is_passed: Whether it has gone past the message: consumed it, handed it back or filtered it.
        retries: Copies waiting or tried in its retry topic, oldest first.
        dead_letters: Copies among its dead letters.
    """

    group: str
    consumer_offset: int
    is_passed: bool
    retries: list[ReceivedMessage] = []
    dead_letters: list[ReceivedMessage] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that the cluster knows of a message.

    Attributes:
        message: As stored.
        index: Log index of its entry; None if no replica could say.
        term: Raft term of its entry.
        replicas: Every replica of its broker group.
        groups: The consumer groups that consume its topic.
    """

    message: ReceivedMessage
    index: int | None
    term: int | None
    replicas: list[ReplicaCopy]
    groups: list[GroupView]


class Inspector:
    """Made by `AsyncAdmin.inspector`. Errors as there."""

    def __init__(self, session: ClientSession, admin: AsyncAdmin) -> None:
        self._session = session
        self._admin = admin

    async def explain(self, message_id: str, topic: str | None = None) -> Explanation:
        """Returns what became of a message.

        Args:
            message_id: Either of its ids.
            topic: Needed with a unique key.

        Raises:
            NotFoundError, InvalidParameterError: As `AsyncAdmin.message`.
        """
        message = await self._admin.message(message_id, topic)
        info = await self._session.cluster_info()
        data = info.brokers.get(message.broker_name)
        addresses = sorted(data.addresses.values()) if data is not None else []
        answers = await asyncio.gather(*(self._locate(each, message) for each in addresses))
        places = [place for _, place in answers if place is not None]
        groups = [
            await self._group(name, message)
            for name in await self._admin.topic_consumers(message.topic)
        ]
        return Explanation(
            message=message,
            index=places[0].index if places else None,
            term=places[0].term if places else None,
            replicas=[copy for copy, _ in answers],
            groups=[view for view in groups if view is not None],
        )

    async def change_topic(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Sets attributes of a topic in all broker groups that have it; None removes one.

        Raises:
            TopicNotFoundError: (definite) No group has it.
            InvalidParameterError: (definite) A name or value cannot be an attribute.
        """
        parts = []
        for key, value in changes.items():
            if "," in key + (value or "") or "=" in key:
                raise InvalidParameterError(f"attribute {key!r} must not hold ',' or '='")
            parts.append(f"-{key}" if value is None else f"+{key}={value}")
        for group, config in (await self._admin.topic(name)).items():
            header = topic_header(config, ",".join(parts))
            await self._session.call_leader(group, RequestCode.UPDATE_AND_CREATE_TOPIC, header)

    async def change_group(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Sets attributes of a consumer group in all broker groups that have it.

        Raises:
            GroupNotFoundError: (definite) No broker group has it.
        """
        found = False
        header = GetGroupConfigHeader(group=name)
        for broker_name in sorted((await self._session.cluster_info()).brokers):
            try:
                answer = await self._session.call_leader(
                    broker_name, RequestCode.GET_SUBSCRIPTION_GROUP_CONFIG, header
                )
            except BrokerResponseError as error:
                if error.code != ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
                    raise
                continue
            found = True
            config = decode_group_config(answer.body)
            attributes = {**config.attributes, **changes}
            kept = {key: value for key, value in attributes.items() if value is not None}
            body = encode_group_config(msgspec.structs.replace(config, attributes=kept))
            code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP
            await self._session.call_leader(broker_name, code, None, body)
        if not found:
            raise GroupNotFoundError(f"no broker has consumer group {name}")

    # --- inside -------------------------------------------------------------------------------

    async def _locate(
        self, address: str, message: ReceivedMessage
    ) -> tuple[ReplicaCopy, LocateMessageResponse | None]:
        ext = to_ext(LocateMessageHeader(physical_offset=message.physical_offset))
        try:
            answer = await self._session.remoting.request(
                address, RequestCode.LOCATE_MESSAGE, ext, timeout_s=_ASK_S
            )
            if answer.code == ResponseCode.QUERY_NOT_FOUND:
                return ReplicaCopy(address=address, holds=False), None
            if answer.code != ResponseCode.SUCCESS:
                return ReplicaCopy(address=address), None
            place = answer.header(LocateMessageResponse)
        except DLedgerError:
            return ReplicaCopy(address=address), None
        holds = place.is_applied and place.unique_key == message.unique_key
        copy = ReplicaCopy(
            address=address,
            replica_id=place.replica_id,
            holds=holds,
            is_durable=holds and place.is_durable,
            is_leader=place.is_leader,
        )
        return copy, place if holds else None

    async def _group(self, name: str, message: ReceivedMessage) -> GroupView | None:
        progress = await self._admin.consumer_progress(name, message.topic)
        place = (message.broker_name, message.queue_id)
        offsets = [p.consumer_offset for p in progress if (p.queue[1], p.queue[2]) == place]
        if not offsets:
            return None
        return GroupView(
            group=name,
            consumer_offset=offsets[0],
            is_passed=offsets[0] > message.queue_offset,
            retries=await self._copies(RETRY_PREFIX + name, message),
            dead_letters=await self._copies(DEAD_LETTER_PREFIX + name, message),
        )

    async def _copies(self, topic: str, message: ReceivedMessage) -> list[ReceivedMessage]:
        if not message.unique_key:
            return []
        try:
            return await self._admin.messages_by_key(
                topic, message.unique_key, unique=True, count_max=_COPIES_MAX
            )
        except (RouteNotFoundError, BrokerResponseError):
            return []  # nothing was ever handed back
