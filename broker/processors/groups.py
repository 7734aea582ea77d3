"""Consumer groups: 200, 201, 207 and 352."""

from __future__ import annotations

import logging

from broker import commands, names
from broker.consumers import GUARD, REFUSE, WARN
from broker.context import BrokerContext
from broker.quotas import parse_quotas
from dledger.errors import FlowControlError, GroupNotFoundError, InvalidParameterError
from dledger.message import validate_group
from dledger.model import GroupConfig
from dledger.remoting.bodies import (
    DataVersion,
    GroupTable,
    decode_group_config,
    encode_group_config,
    encode_group_table,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    DeleteGroupHeader,
    GetGroupConfigHeader,
)
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

RETRY_QUEUES_MAX = 64
RETRY_MAX = 1_000_000


class GroupProcessor:
    """Creates, changes, deletes and describes consumer groups."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context

    async def put(self, connection: Connection, command: Command) -> None:
        """200: creates a group or changes one. Serving leader only; repeating it is harmless.

        Durability: committed on a majority and applied here when answered.
        """
        group = decode_group_config(command.body)
        validate_group(group.name)
        if not 0 <= group.retry_queue_count <= RETRY_QUEUES_MAX:
            raise InvalidParameterError(f"retryQueueNums must lie in 0..{RETRY_QUEUES_MAX}")
        if not -1 <= group.retry_max <= RETRY_MAX:
            raise InvalidParameterError(f"retryMaxTimes must lie in -1..{RETRY_MAX}")
        if not 0 < group.consume_timeout_minutes <= RETRY_MAX:
            raise InvalidParameterError(f"consumeTimeoutMinute must lie in 1..{RETRY_MAX}")
        parse_quotas(group.attributes)
        if group.attributes.get(GUARD, WARN) not in (WARN, REFUSE):
            raise InvalidParameterError(f"{GUARD} must be {WARN} or {REFUSE}")
        self._context.gate.check()
        store = self._context.store
        limit = self._context.config.limits.groups_max
        if store.group(group.name) is None and len(store.groups) >= limit:
            raise FlowControlError(f"limits.groups_max = {limit} is reached")
        await self._context.raft.submit(commands.encode_put_group(group))
        logger.info("group put: group=%s", group.name)
        connection.reply(command)

    async def delete(self, connection: Connection, command: Command) -> None:
        """207: deletes a group, and with `cleanOffset` its offsets. Success if there is none."""
        header = command.header(DeleteGroupHeader)
        if not header.group:
            raise InvalidParameterError("the group name is empty")
        if names.is_system_group(header.group):
            raise InvalidParameterError(f"the group[{header.group}] is a system group")
        self._context.gate.check()
        await self._context.raft.submit(
            commands.encode_delete_group(header.group, delete_offsets=header.clean_offset)
        )
        logger.info("group deleted: group=%s", header.group)
        connection.reply(command)

    def config(self, connection: Connection, command: Command) -> None:
        """352: one group's configuration."""
        name = command.header(GetGroupConfigHeader).group
        group = self._context.store.group(name)
        if group is None:
            raise GroupNotFoundError(f"No group in this broker. group: {name}")
        connection.reply(command, body=encode_group_config(group))

    def all_configs(self, connection: Connection, command: Command) -> None:
        """201: all groups."""
        groups: dict[str, GroupConfig] = dict(self._context.store.groups)
        version = DataVersion(counter=self._context.store.applied_index)
        body = encode_group_table(GroupTable(groups=groups, data_version=version))
        connection.reply(command, 0, {"totalGroupNum": str(len(groups))}, body=body)
