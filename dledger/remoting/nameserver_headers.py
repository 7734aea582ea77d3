"""Typed headers of what brokers, clients and admin tools ask nameservers; see `headers`."""

from __future__ import annotations

from msgspec import Struct, field

from dledger.remoting.headers import Int32, Int64


class RegisterBrokerHeader(Struct, kw_only=True):
    """REGISTER_BROKER.

    Ours: `term` (the highest one wins broker id 0) and `shared_address`, an address that the leader
    took over from the one before it.
    """

    broker_name: str = field(name="brokerName")
    broker_address: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName")
    ha_server_address: str = field(name="haServerAddr", default="")
    broker_id: Int64 = field(name="brokerId")
    heartbeat_timeout_ms: Int64 | None = field(name="heartbeatTimeoutMillis", default=None)
    enable_acting_master: bool | None = field(name="enableActingMaster", default=None)
    compressed: bool = False
    body_crc32: Int64 = field(name="bodyCrc32", default=0)
    term: Int64 = field(name="dlTerm", default=0)
    shared_address: str = field(name="dlSharedAddress", default="")


class RegisterBrokerResponse(Struct, kw_only=True):
    """Who leads the registered broker group, as far as the nameserver knows."""

    ha_server_address: str = field(name="haServerAddr", default="")
    master_address: str = field(name="masterAddr", default="")


class UnregisterBrokerHeader(Struct, kw_only=True):
    """UNREGISTER_BROKER."""

    broker_name: str = field(name="brokerName")
    broker_address: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName", default="")
    broker_id: Int64 = field(name="brokerId", default=0)


class GetRouteHeader(Struct, kw_only=True):
    """GET_ROUTEINFO_BY_TOPIC. `own_addresses` is ours: the replicas' own, never a shared one."""

    topic: str
    accept_standard_json_only: bool = field(name="acceptStandardJsonOnly", default=False)
    own_addresses: bool = field(name="dlOwnAddresses", default=False)


class GetTopicsByClusterHeader(Struct, kw_only=True):
    """GET_TOPICS_BY_CLUSTER."""

    cluster: str


class DeleteTopicInNameserverHeader(Struct, kw_only=True):
    """DELETE_TOPIC_IN_NAMESRV."""

    topic: str
    cluster_name: str = field(name="clusterName", default="")


class PutKvConfigHeader(Struct, kw_only=True):
    """PUT_KV_CONFIG."""

    namespace: str
    key: str
    value: str


class GetKvConfigHeader(Struct, kw_only=True):
    """GET_KV_CONFIG."""

    namespace: str
    key: str


class GetKvConfigResponse(Struct, kw_only=True):
    """The value of one key."""

    value: str


class DeleteKvConfigHeader(Struct, kw_only=True):
    """DELETE_KV_CONFIG."""

    namespace: str
    key: str


class GetKvListHeader(Struct, kw_only=True):
    """GET_KVLIST_BY_NAMESPACE."""

    namespace: str


class BrokerHeartbeatHeader(Struct, kw_only=True):
    """BROKER_HEARTBEAT."""

    cluster_name: str = field(name="clusterName")
    broker_address: str = field(name="brokerAddr")
    broker_name: str = field(name="brokerName")
    broker_id: Int64 | None = field(name="brokerId", default=None)
    heartbeat_timeout_ms: Int64 | None = field(name="heartbeatTimeoutMills", default=None)
    epoch: Int64 | None = None
    offset_max: Int64 | None = field(name="maxOffset", default=None)
    confirm_offset: Int64 | None = field(name="confirmOffset", default=None)
    election_priority: Int64 | None = field(name="electionPriority", default=None)


class GetBrokerMemberGroupHeader(Struct, kw_only=True):
    """GET_BROKER_MEMBER_GROUP."""

    cluster_name: str = field(name="clusterName")
    broker_name: str = field(name="brokerName")


class QueryDataVersionHeader(Struct, kw_only=True):
    """QUERY_DATA_VERSION."""

    broker_name: str = field(name="brokerName")
    broker_address: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName", default="")
    broker_id: Int64 = field(name="brokerId", default=0)


class QueryDataVersionResponse(Struct, kw_only=True):
    """Whether the broker should register again."""

    changed: bool


class WritePermissionHeader(Struct, kw_only=True):
    """WIPE_WRITE_PERM_OF_BROKER and ADD_WRITE_PERM_OF_BROKER."""

    broker_name: str = field(name="brokerName")


class WipeWritePermissionResponse(Struct, kw_only=True):
    """How many topics of the broker lost their write permission."""

    topic_count: Int32 = field(name="wipeTopicCount")


class AddWritePermissionResponse(Struct, kw_only=True):
    """How many topics of the broker got their write permission back."""

    topic_count: Int32 = field(name="addTopicCount")
