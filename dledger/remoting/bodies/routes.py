"""Routes: the bodies of 105, 106 and 901."""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from dledger.remoting.bodies.codec import decode_json


class BrokerData(Struct, kw_only=True):
    """The addresses of one broker group by broker id; 0 is the leader."""

    cluster: str = ""
    broker_name: str = field(name="brokerName")
    addresses: dict[int, str] = field(name="brokerAddrs", default_factory=dict)
    enable_acting_master: bool = field(name="enableActingMaster", default=False)


class QueueData(Struct, kw_only=True):
    """The queues that one broker group has of a topic."""

    broker_name: str
    read_queue_count: int = 4
    write_queue_count: int = 4
    permission: int = 6
    topic_flags: int = 0


class TopicRouteData(Struct, kw_only=True):
    """Where the queues of a topic are."""

    broker_datas: list[BrokerData] = []
    queue_datas: list[QueueData] = []
    order_topic_conf: str = ""


class ClusterInfo(Struct, kw_only=True):
    """All broker groups by name, and the names of each cluster's groups."""

    brokers: dict[str, BrokerData] = field(name="brokerAddrTable", default_factory=dict)
    clusters: dict[str, list[str]] = field(name="clusterAddrTable", default_factory=dict)


class _QueueDataWire(Struct, kw_only=True):
    broker_name: str = field(name="brokerName")
    read_queue_count: int = field(name="readQueueNums", default=4)
    write_queue_count: int = field(name="writeQueueNums", default=4)
    permission: int = field(name="perm", default=6)
    # Up to 4.9.3, and in the Go client still, the field has the second spelling.
    topic_flags: int | None = field(name="topicSysFlag", default=None)
    topic_flags_old: int | None = field(name="topicSynFlag", default=None)


class _TopicRouteWire(Struct, kw_only=True, omit_defaults=False):
    broker_datas: list[BrokerData] = field(name="brokerDatas", default_factory=list)
    filter_server_table: dict[str, list[str]] = field(
        name="filterServerTable", default_factory=dict
    )
    queue_datas: list[_QueueDataWire] = field(name="queueDatas", default_factory=list)
    order_topic_conf: str | msgspec.UnsetType = field(name="orderTopicConf", default=msgspec.UNSET)


def encode_topic_route(route: TopicRouteData) -> bytes:
    """Returns the body that answers GET_ROUTEINFO_BY_TOPIC."""
    queues = [
        _QueueDataWire(
            broker_name=queue.broker_name,
            read_queue_count=queue.read_queue_count,
            write_queue_count=queue.write_queue_count,
            permission=queue.permission,
            topic_flags=queue.topic_flags,
            topic_flags_old=queue.topic_flags,
        )
        for queue in route.queue_datas
    ]
    return msgspec.json.encode(
        _TopicRouteWire(
            broker_datas=route.broker_datas,
            queue_datas=queues,
            order_topic_conf=route.order_topic_conf or msgspec.UNSET,
        )
    )


def decode_topic_route(data: bytes) -> TopicRouteData:
    """Decodes a topic's route as any nameserver writes it."""
    wire = decode_json(data, _TopicRouteWire)
    queues = [
        QueueData(
            broker_name=queue.broker_name,
            read_queue_count=queue.read_queue_count,
            write_queue_count=queue.write_queue_count,
            permission=queue.permission,
            topic_flags=(
                queue.topic_flags if queue.topic_flags is not None else queue.topic_flags_old or 0
            ),
        )
        for queue in wire.queue_datas
    ]
    conf = wire.order_topic_conf
    return TopicRouteData(
        broker_datas=wire.broker_datas,
        queue_datas=queues,
        order_topic_conf=conf if isinstance(conf, str) else "",
    )


def encode_cluster_info(info: ClusterInfo) -> bytes:
    """Returns the body that answers GET_BROKER_CLUSTER_INFO."""
    return msgspec.json.encode(info)


def decode_cluster_info(data: bytes) -> ClusterInfo:
    """Decodes the answer to GET_BROKER_CLUSTER_INFO."""
    return decode_json(data, ClusterInfo)


class _MemberGroupWire(Struct, kw_only=True):
    group: BrokerData | None = field(name="brokerMemberGroup", default=None)


def encode_broker_member_group(group: BrokerData) -> bytes:
    """Returns the body that answers GET_BROKER_MEMBER_GROUP."""
    return msgspec.json.encode(_MemberGroupWire(group=group))


def decode_broker_member_group(data: bytes) -> BrokerData | None:
    """Decodes the answer to GET_BROKER_MEMBER_GROUP; `None` if the group is unknown."""
    return decode_json(data, _MemberGroupWire).group
