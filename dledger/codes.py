"""Numbers of the RocketMQ remoting protocol: request codes, response codes, flags, limits.

Source: apache/rocketmq `RequestCode`, `ResponseCode`, `RemotingSysResponseCode`, `MQVersion`,
`MessageSysFlag`, `PullSysFlag`, `PermName`. Only the numbers are taken; names follow the glossary.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

# The version we announce. Clients of 5.x enable SQL filters and standard JSON above 401.
PROTOCOL_VERSION = 477
LANGUAGE = "PYTHON"


class RequestCode(IntEnum):
    """What a request asks for."""

    SEND_MESSAGE = 10
    PULL_MESSAGE = 11
    QUERY_MESSAGE = 12
    QUERY_CONSUMER_OFFSET = 14
    UPDATE_CONSUMER_OFFSET = 15
    UPDATE_AND_CREATE_TOPIC = 17
    GET_ALL_TOPIC_CONFIG = 21
    UPDATE_BROKER_CONFIG = 25
    GET_BROKER_CONFIG = 26
    GET_BROKER_RUNTIME_INFO = 28
    SEARCH_OFFSET_BY_TIMESTAMP = 29
    GET_MAX_OFFSET = 30
    GET_MIN_OFFSET = 31
    GET_EARLIEST_MESSAGE_STORE_TIME = 32
    VIEW_MESSAGE_BY_ID = 33
    HEART_BEAT = 34
    UNREGISTER_CLIENT = 35
    CONSUMER_SEND_MESSAGE_BACK = 36
    END_TRANSACTION = 37
    GET_CONSUMER_LIST_BY_GROUP = 38
    CHECK_TRANSACTION_STATE = 39
    NOTIFY_CONSUMER_IDS_CHANGED = 40
    LOCK_BATCH_MQ = 41
    UNLOCK_BATCH_MQ = 42
    GET_ALL_CONSUMER_OFFSET = 43
    CHECK_CLIENT_CONFIG = 46
    PUT_KV_CONFIG = 100
    GET_KV_CONFIG = 101
    DELETE_KV_CONFIG = 102
    REGISTER_BROKER = 103
    UNREGISTER_BROKER = 104
    GET_ROUTEINFO_BY_TOPIC = 105
    GET_BROKER_CLUSTER_INFO = 106
    UPDATE_AND_CREATE_SUBSCRIPTION_GROUP = 200
    GET_ALL_SUBSCRIPTION_GROUP_CONFIG = 201
    GET_TOPIC_STATS_INFO = 202
    GET_CONSUMER_CONNECTION_LIST = 203
    GET_PRODUCER_CONNECTION_LIST = 204
    WIPE_WRITE_PERM_OF_BROKER = 205
    GET_ALL_TOPIC_LIST_FROM_NAMESERVER = 206
    DELETE_SUBSCRIPTION_GROUP = 207
    GET_CONSUME_STATS = 208
    DELETE_TOPIC_IN_BROKER = 215
    DELETE_TOPIC_IN_NAMESRV = 216
    REGISTER_TOPIC_IN_NAMESRV = 217
    GET_KVLIST_BY_NAMESPACE = 219
    RESET_CONSUMER_CLIENT_OFFSET = 220
    INVOKE_BROKER_TO_RESET_OFFSET = 222
    GET_TOPICS_BY_CLUSTER = 224
    QUERY_TOPIC_CONSUME_BY_WHO = 300
    GET_SYSTEM_TOPIC_LIST_FROM_NAMESERVER = 304
    GET_SYSTEM_TOPIC_LIST_FROM_BROKER = 305
    SEND_MESSAGE_V2 = 310
    UPDATE_NAMESERVER_CONFIG = 318
    GET_NAMESERVER_CONFIG = 319
    CLONE_GROUP_OFFSET = 314
    SEND_BATCH_MESSAGE = 320
    QUERY_CONSUME_QUEUE = 321
    QUERY_DATA_VERSION = 322
    SEND_REPLY_MESSAGE = 324
    SEND_REPLY_MESSAGE_V2 = 325
    PUSH_REPLY_MESSAGE_TO_CLIENT = 326
    ADD_WRITE_PERM_OF_BROKER = 327
    QUERY_TOPICS_BY_CONSUMER = 343
    GET_TOPIC_CONFIG = 351
    GET_SUBSCRIPTION_GROUP_CONFIG = 352
    LITE_PULL_MESSAGE = 361
    RECALL_MESSAGE = 370
    QUERY_ASSIGNMENT = 400
    SET_MESSAGE_REQUEST_MODE = 401
    GET_BROKER_MEMBER_GROUP = 901
    BROKER_HEARTBEAT = 904
    POP_MESSAGE = 200050
    ACK_MESSAGE = 200051
    PEEK_MESSAGE = 200052
    CHANGE_MESSAGE_INVISIBLETIME = 200053
    NOTIFICATION = 200054
    POLLING_INFO = 200055
    BATCH_ACK_MESSAGE = 200151
    # Ours, far from RocketMQ's.
    TRANSFER_LEADER = 30_001


class ResponseCode(IntEnum):
    """What a response says."""

    SUCCESS = 0
    SYSTEM_ERROR = 1
    SYSTEM_BUSY = 2
    REQUEST_CODE_NOT_SUPPORTED = 3
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12
    MESSAGE_ILLEGAL = 13
    SERVICE_NOT_AVAILABLE = 14
    VERSION_NOT_SUPPORTED = 15
    NO_PERMISSION = 16
    TOPIC_NOT_EXIST = 17
    TOPIC_EXIST_ALREADY = 18
    PULL_NOT_FOUND = 19
    PULL_RETRY_IMMEDIATELY = 20
    PULL_OFFSET_MOVED = 21
    QUERY_NOT_FOUND = 22
    SUBSCRIPTION_PARSE_FAILED = 23
    SUBSCRIPTION_NOT_EXIST = 24
    SUBSCRIPTION_NOT_LATEST = 25
    SUBSCRIPTION_GROUP_NOT_EXIST = 26
    INVALID_PARAMETER = 29
    CONSUMER_NOT_ONLINE = 206
    NO_MESSAGE = 208
    POLLING_FULL = 209
    POLLING_TIMEOUT = 210
    FLOW_CONTROL = 215
    ILLEGAL_OPERATION = 604


class CommandFlag(IntFlag):
    """Bits of a command's `flag` field."""

    RESPONSE = 1
    ONEWAY = 2


class MessageFlag(IntFlag):
    """Bits of a stored message's `sysFlag`."""

    COMPRESSED = 0x001
    MULTI_TAGS = 0x002
    TRANSACTION_PREPARED = 0x004
    TRANSACTION_COMMIT = 0x008
    TRANSACTION_ROLLBACK = 0x00C
    BORN_HOST_V6 = 0x010
    STORE_HOST_V6 = 0x020
    COMPRESSION_LZ4 = 0x100
    COMPRESSION_ZSTD = 0x200
    COMPRESSION_ZLIB = 0x300
    COMPRESSION_MASK = 0x700


class PullFlag(IntFlag):
    """Bits of a pull request's `sysFlag`."""

    COMMIT_OFFSET = 1
    SUSPEND = 2
    SUBSCRIPTION = 4
    CLASS_FILTER = 8
    LITE_PULL = 16


class Permission(IntFlag):
    """What may be done with a topic."""

    INHERIT = 1
    WRITE = 2
    READ = 4
    PRIORITY = 8


# Extension fields of our own, ignored by every other implementation.
#
# A request that carries EXT_NO_FORWARD wants a definite "not leader" with the leader's address
# instead of being forwarded. EXT_FORWARDED marks a request that has already made its one hop.
# A failed response carries EXT_OUTCOME: OUTCOME_REFUSED means that the operation certainly did
# not and will not take effect, OUTCOME_UNKNOWN that it may still.
#
# A send with EXT_PRODUCER_ID (16 hex digits) and EXT_SEQUENCE (the producer's number of the
# request's first message in that queue) is stored once, however often it comes. Its successful
# answer carries EXT_DEDUPLICATED: "1" if it repeated an earlier request, else "0".
EXT_NO_FORWARD = "dlNoForward"
EXT_FORWARDED = "dlForwarded"
EXT_OUTCOME = "dlOutcome"
EXT_LEADER_ADDRESS = "dlLeader"
EXT_TERM = "dlTerm"
EXT_PRODUCER_ID = "dlProducerId"
EXT_SEQUENCE = "dlSequence"
EXT_DEDUPLICATED = "dlDeduplicated"
OUTCOME_REFUSED = "refused"
OUTCOME_UNKNOWN = "unknown"

FRAME_BYTES_MAX = 16 * 1024 * 1024
MESSAGE_BODY_BYTES_MAX = 4 * 1024 * 1024
PROPERTIES_BYTES_MAX = 32_767
TOPIC_LENGTH_MAX = 127
TOPIC_LENGTH_MAX_SYSTEM = 255  # %RETRY% and %DLQ% topics
GROUP_LENGTH_MAX = 120
AUTO_CREATE_TOPIC = "TBW102"
RETRY_PREFIX = "%RETRY%"
ORDER_TOPIC_NAMESPACE = "ORDER_TOPIC_CONFIG"  # of a nameserver's key-value table
# RocketMQ's default table of delay levels 1 to 18.
DELAY_LEVELS_MS = tuple(
    1000 * seconds for seconds in (1, 5, 10, 30, *range(60, 601, 60), 1200, 1800, 3600, 7200)
)
DEAD_LETTER_PREFIX = "%DLQ%"
