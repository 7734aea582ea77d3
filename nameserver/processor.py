"""Answers the requests of brokers, clients and admin tools from the route table.

Runs on the server's event loop; nothing here waits, except that a changed key-value table is
written to its file before the answer leaves.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence

from dledger.clock import Clock
from dledger.codes import ORDER_TOPIC_NAMESPACE, RequestCode, ResponseCode
from dledger.errors import DLedgerError, InvalidParameterError, PermissionDeniedError
from dledger.model import TopicConfig
from dledger.remoting import bodies
from dledger.remoting import nameserver_headers as headers
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.server import Connection
from nameserver.key_value_file import KeyValueFile
from nameserver.key_values import WRITE_WIPED_NAMESPACE, KeyValueTable
from nameserver.route_table import (
    LEADER_ID,
    DataVersion,
    GroupRoute,
    Member,
    Registration,
    RouteTable,
    address_is_valid,
)

logger = logging.getLogger(__name__)

NAME_LENGTH_MAX = 255
_CRC_MASK = 0x7FFF_FFFF

# What a handler answers with success: extension fields and body.
Reply = tuple[Mapping[str, object] | None, bytes]
_DONE: Reply = (None, b"")


class NameserverProcessor:
    """Dispatches requests by code; owns the route table and the key-value table."""

    def __init__(
        self,
        routes: RouteTable,
        clock: Clock,
        *,
        key_values: KeyValueFile | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Takes its parts.

        Args:
            routes: The table, normally empty.
            clock: Monotonic time for expiry.
            key_values: Where the key-value table is kept; `None` keeps it in memory only.
            settings: What GET_NAMESERVER_CONFIG shows.
        """
        self._routes = routes
        self._clock = clock
        self._key_value_file = key_values
        self._key_values = key_values.load() if key_values else KeyValueTable()
        self._settings = dict(settings or {})
        routes.remember_wiped(self._key_values.tables().get(WRITE_WIPED_NAMESPACE, {}))
        self._handlers: dict[int, Callable[[Connection, Command], Reply]] = {
            RequestCode.REGISTER_BROKER: self._register,
            RequestCode.UNREGISTER_BROKER: self._unregister,
            RequestCode.BROKER_HEARTBEAT: self._heartbeat,
            RequestCode.QUERY_DATA_VERSION: self._query_data_version,
            RequestCode.GET_ROUTEINFO_BY_TOPIC: self._route,
            RequestCode.GET_BROKER_CLUSTER_INFO: self._cluster_info,
            RequestCode.GET_BROKER_MEMBER_GROUP: self._member_group,
            RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: self._all_topics,
            RequestCode.GET_TOPICS_BY_CLUSTER: self._topics_by_cluster,
            RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NAMESERVER: self._system_topics,
            RequestCode.DELETE_TOPIC_IN_NAMESRV: self._delete_topic,
            RequestCode.REGISTER_TOPIC_IN_NAMESRV: self._put_topic,
            RequestCode.WIPE_WRITE_PERM_OF_BROKER: self._wipe_write,
            RequestCode.ADD_WRITE_PERM_OF_BROKER: self._add_write,
            RequestCode.PUT_KV_CONFIG: self._put_key_value,
            RequestCode.GET_KV_CONFIG: self._get_key_value,
            RequestCode.DELETE_KV_CONFIG: self._delete_key_value,
            RequestCode.GET_KVLIST_BY_NAMESPACE: self._list_key_values,
            RequestCode.GET_NAMESERVER_CONFIG: self._get_settings,
            RequestCode.UPDATE_NAMESERVER_CONFIG: self._update_settings,
        }

    # --- shell ----------------------------------------------------------------------------------

    def handle(self, connection: Connection, command: Command) -> None:
        """Answers one request."""
        handler = self._handlers.get(command.code)
        if handler is None:
            connection.reply(
                command,
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                remark=f" request type {command.code} not supported",
            )
            return
        try:
            ext, body = handler(connection, command)
        except DLedgerError as error:
            connection.reply_error(command, error)
            return
        connection.reply(command, ResponseCode.SUCCESS, ext=ext, body=body)

    def connection_lost(self, connection: Connection) -> None:
        """Removes at once what was registered on a connection that is gone."""
        self._log_removed(self._routes.connection_lost(connection.id), "connection lost")

    def expire(self) -> None:
        """Removes replicas that have been silent for too long; to be called every few seconds."""
        self._log_removed(self._routes.expire(self._now_ms()), "silent for too long")

    # --- brokers --------------------------------------------------------------------------------

    def _register(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.RegisterBrokerHeader)
        _check_name("brokerName", header.broker_name)
        _check_name("clusterName", header.cluster_name)
        _check_address(header.broker_address)
        if header.broker_id < LEADER_ID:
            raise InvalidParameterError(f"brokerId must be at least 0, not {header.broker_id}")
        if header.shared_address:
            _check_address(header.shared_address)
        if header.term < 0:
            raise InvalidParameterError(f"dlTerm must be at least 0, not {header.term}")
        if header.body_crc32 and header.body_crc32 != zlib.crc32(command.body) & _CRC_MASK:
            raise BodyChecksumError("bodyCrc32 does not match the body")
        body = bodies.decode_register_broker(command.body, compressed=header.compressed)
        outcome = self._routes.register(
            Registration(
                cluster=header.cluster_name,
                broker_name=header.broker_name,
                broker_id=header.broker_id,
                address=header.broker_address,
                ha_address=header.ha_server_address,
                term=header.term,
                shared_address=header.shared_address,
                connection_id=connection.id,
                expiry_ms=header.heartbeat_timeout_ms,
                topics=body.topics,
                data_version=_version(body.data_version),
            ),
            self._now_ms(),
        )
        if outcome.is_new_member or outcome.is_new_leader:
            logger.info(
                "broker registered broker_name=%s broker_id=%d address=%s term=%d",
                header.broker_name,
                header.broker_id,
                header.broker_address,
                header.term,
            )
        response = headers.RegisterBrokerResponse()
        if header.broker_id != LEADER_ID:
            response.master_address = outcome.leader_address
            response.ha_server_address = outcome.leader_ha_address
        return to_ext(response), self._order_topics()

    def _unregister(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.UnregisterBrokerHeader)
        if self._routes.unregister(header.broker_name, header.broker_id, header.broker_address):
            logger.info(
                "broker unregistered broker_name=%s broker_id=%d address=%s",
                header.broker_name,
                header.broker_id,
                header.broker_address,
            )
        return _DONE

    def _heartbeat(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.BrokerHeartbeatHeader)
        self._routes.heartbeat(
            header.broker_name, header.broker_address, connection.id, self._now_ms()
        )
        return _DONE

    def _query_data_version(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.QueryDataVersionHeader)
        asked = _version(bodies.decode_data_version(command.body or b"{}"))
        known = self._routes.data_version(header.broker_name, header.broker_address)
        self._routes.heartbeat(
            header.broker_name, header.broker_address, connection.id, self._now_ms()
        )
        ext = to_ext(headers.QueryDataVersionResponse(changed=known != asked))
        if known is None:
            return ext, b""
        return ext, bodies.encode_data_version(
            bodies.DataVersion(
                counter=known.counter,
                state_version=known.state_version,
                timestamp_ms=known.timestamp_ms,
            )
        )

    # --- routes ---------------------------------------------------------------------------------

    def _route(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.GetRouteHeader)
        topic = header.topic
        route = self._routes.route(topic, own_addresses=header.own_addresses)
        order = self._key_values.find(ORDER_TOPIC_NAMESPACE, topic) or ""
        return None, bodies.encode_topic_route(
            bodies.TopicRouteData(
                broker_datas=[_broker_data(group) for group in route.groups],
                queue_datas=[
                    bodies.QueueData(
                        broker_name=name,
                        read_queue_count=config.read_queue_count,
                        write_queue_count=config.write_queue_count,
                        permission=int(config.permission),
                        topic_flags=config.topic_flags,
                    )
                    for name, config in route.topics.items()
                ],
                order_topic_conf=order,
            )
        )

    def _cluster_info(self, connection: Connection, command: Command) -> Reply:
        return None, bodies.encode_cluster_info(
            bodies.ClusterInfo(
                brokers={group.broker_name: _broker_data(group) for group in self._routes.groups()},
                clusters=self._routes.clusters(),
            )
        )

    def _member_group(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.GetBrokerMemberGroupHeader)
        group = self._routes.group(header.broker_name)
        if group is None:
            group = GroupRoute(
                cluster=header.cluster_name, broker_name=header.broker_name, addresses={}
            )
        return None, bodies.encode_broker_member_group(_broker_data(group))

    def _all_topics(self, connection: Connection, command: Command) -> Reply:
        return None, bodies.encode_topic_list(self._routes.topics())

    def _topics_by_cluster(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.GetTopicsByClusterHeader)
        return None, bodies.encode_topic_list(self._routes.topics(header.cluster))

    def _system_topics(self, connection: Connection, command: Command) -> Reply:
        clusters = self._routes.clusters()
        names = [*clusters, *(name for names in clusters.values() for name in names)]
        groups = self._routes.groups()
        address = next(iter(groups[0].addresses.values())) if groups else None
        return None, bodies.encode_topic_list(names, address)

    # --- administration -------------------------------------------------------------------------

    def _delete_topic(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.DeleteTopicInNameserverHeader)
        self._routes.delete_topic(header.topic, header.cluster_name or None)
        return _DONE

    def _put_topic(self, connection: Connection, command: Command) -> Reply:
        topic = command.header(headers.GetRouteHeader).topic
        _check_name("topic", topic)
        route = bodies.decode_topic_route(command.body)
        self._routes.put_topic(topic, _configs(topic, route.queue_datas))
        return _DONE

    def _wipe_write(self, connection: Connection, command: Command) -> Reply:
        name = command.header(headers.WritePermissionHeader).broker_name
        count = self._routes.set_write_wiped(name, True)
        self._keep_wiped(name)
        return to_ext(headers.WipeWritePermissionResponse(topic_count=count)), b""

    def _add_write(self, connection: Connection, command: Command) -> Reply:
        name = command.header(headers.WritePermissionHeader).broker_name
        count = self._routes.set_write_wiped(name, False)
        self._keep_wiped(name)
        return to_ext(headers.AddWritePermissionResponse(topic_count=count)), b""

    def _put_key_value(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.PutKvConfigHeader)
        self._key_values.put(header.namespace, header.key, header.value)
        self._save_key_values()
        return _DONE

    def _get_key_value(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.GetKvConfigHeader)
        value = self._key_values.get(header.namespace, header.key)
        return to_ext(headers.GetKvConfigResponse(value=value)), b""

    def _delete_key_value(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.DeleteKvConfigHeader)
        if self._key_values.delete(header.namespace, header.key):
            self._save_key_values()
        return _DONE

    def _list_key_values(self, connection: Connection, command: Command) -> Reply:
        header = command.header(headers.GetKvListHeader)
        return None, bodies.encode_kv_table(self._key_values.namespace(header.namespace))

    def _get_settings(self, connection: Connection, command: Command) -> Reply:
        text = "".join(f"{name}={value}\n" for name, value in self._settings.items())
        return None, text.encode()

    def _update_settings(self, connection: Connection, command: Command) -> Reply:
        raise PermissionDeniedError("this nameserver takes its settings at start only")

    # --- private --------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)

    def _order_topics(self) -> bytes:
        table = self._key_values.tables().get(ORDER_TOPIC_NAMESPACE)
        return bodies.encode_kv_table(table) if table else b""

    def _keep_wiped(self, broker_name: str) -> None:
        """Writes down whether a group's write permission is wiped, so that a restart knows."""
        if broker_name in self._routes.write_wiped:
            self._key_values.put(WRITE_WIPED_NAMESPACE, broker_name, "true")
        elif not self._key_values.delete(WRITE_WIPED_NAMESPACE, broker_name):
            return
        self._save_key_values()

    def _save_key_values(self) -> None:
        if self._key_value_file is not None:
            self._key_value_file.save(self._key_values)

    @staticmethod
    def _log_removed(removed: Sequence[Member], reason: str) -> None:
        for member in removed:
            logger.warning(
                "broker removed broker_name=%s broker_id=%d address=%s reason=%s",
                member.broker_name,
                member.broker_id,
                member.address,
                reason,
            )


class BodyChecksumError(DLedgerError):
    """A registration's body is not what was sent. Nothing was registered."""

    definite = True
    response_code = ResponseCode.SYSTEM_ERROR


def _check_name(field: str, name: str) -> None:
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise InvalidParameterError(
            f"{field} must have 1 to {NAME_LENGTH_MAX} printable characters"
        )


def _check_address(address: str) -> None:
    if not address_is_valid(address):
        raise InvalidParameterError(f"brokerAddr must be host:port, not {address[:80]!r}")


def _version(version: bodies.DataVersion) -> DataVersion:
    return DataVersion(
        state_version=version.state_version,
        timestamp_ms=version.timestamp_ms,
        counter=version.counter,
    )


def _broker_data(group: GroupRoute) -> bodies.BrokerData:
    return bodies.BrokerData(
        cluster=group.cluster, broker_name=group.broker_name, addresses=dict(group.addresses)
    )


def _configs(topic: str, queues: Sequence[bodies.QueueData]) -> dict[str, TopicConfig]:
    return {
        queue.broker_name: TopicConfig(
            name=topic,
            read_queue_count=queue.read_queue_count,
            write_queue_count=queue.write_queue_count,
            permission=queue.permission,
            topic_flags=queue.topic_flags,
        )
        for queue in queues
    }
