"""Topics and groups that mean something by their name alone. Pure.

The system topics are ordinary replicated topics: the first leader of a group creates those that
are missing as soon as it serves. Until then, and for good measure always, a registration lists
them from here, so that a route for the template topic exists from the first registration on.

Source: RocketMQ `TopicValidator`, `MixAll`, `TopicConfigManager`. We differ: the topics of
transactions are created with the first one, and that of traces is always there.
"""

from __future__ import annotations

from dledger.codes import AUTO_CREATE_TOPIC, DEAD_LETTER_PREFIX, RETRY_PREFIX, Permission
from dledger.message.trace import TRACE_TOPIC
from dledger.model import TopicConfig

SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"
TIMER_TOPIC = "rmq_sys_wheel_timer"
SELF_TEST_TOPIC = "SELF_TEST_TOPIC"
OFFSET_MOVED_TOPIC = "OFFSET_MOVED_EVENT"
BENCHMARK_TOPIC = "BenchmarkTest"
DELAY_LEVELS = 18  # queues of the schedule topic
SYSTEM_TOPIC_PREFIX = "rmq_sys_"
SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"

# Clients may not send to these: what lies in them is the broker's own.
FORBIDDEN_SEND_TOPICS = frozenset(
    {
        SCHEDULE_TOPIC,
        TIMER_TOPIC,
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
    }
)

_RESERVED_TOPICS = FORBIDDEN_SEND_TOPICS | {
    AUTO_CREATE_TOPIC,
    BENCHMARK_TOPIC,
    TRACE_TOPIC,
}

_SYSTEM_GROUPS = frozenset(
    {
        "DEFAULT_PRODUCER",
        "DEFAULT_CONSUMER",
        "TOOLS_CONSUMER",
        "SCHEDULE_CONSUMER",
        "FILTERSRV_CONSUMER",
        "__MONITOR_CONSUMER",
        "CLIENT_INNER_PRODUCER",
        "SELF_TEST_P_GROUP",
        "SELF_TEST_C_GROUP",
        "CID_ONS-HTTP-PROXY",
        "CID_ONSAPI_PERMISSION",
        "CID_ONSAPI_OWNER",
        "CID_ONSAPI_PULL",
    }
)


def system_topics(
    *, cluster_name: str, broker_name: str, template_queue_count: int, auto_create: bool
) -> list[TopicConfig]:
    """Returns the topics that exist without anybody asking.

    Args:
        cluster_name: A topic of this name exists; clients fall back to its route.
        broker_name: So does one of this name, for checks of a single broker.
        template_queue_count: Queues of the template TBW102.
        auto_create: Without it there is no template, so that sends to unknown topics fail early,
            for want of a route.
    """
    everything = int(Permission.READ | Permission.WRITE | Permission.INHERIT)
    topics = [
        _topic(SELF_TEST_TOPIC, 1),
        _topic(OFFSET_MOVED_TOPIC, 1),
        _topic(BENCHMARK_TOPIC, 1024),
        _topic(TRACE_TOPIC, 1),
        *parking_topics(),
        _topic(reply_topic(cluster_name), 1),
        _topic(broker_name, 1, everything),
    ]
    if cluster_name != broker_name:
        topics.append(_topic(cluster_name, 16, everything))
    if auto_create:
        topics.append(_topic(AUTO_CREATE_TOPIC, template_queue_count, everything))
    return topics


def reply_topic(cluster_name: str) -> str:
    """Returns the topic to which answers to requests are sent; none is stored there."""
    return f"{cluster_name}_REPLY_TOPIC"


def parking_topics() -> list[TopicConfig]:
    """Returns the topics in which delayed messages wait: a queue per delay level; all others."""
    return [_topic(SCHEDULE_TOPIC, DELAY_LEVELS), _topic(TIMER_TOPIC, 1)]


def dead_letter_topic(group: str) -> str:
    """Returns the name of the topic of a group's dead letters."""
    return DEAD_LETTER_PREFIX + group


def dead_letter_topic_config(group: str) -> TopicConfig:
    """Returns the topic of a group's dead letters."""
    return _topic(dead_letter_topic(group), 1)


def is_system_topic(name: str, *, cluster_name: str, broker_name: str) -> bool:
    """Tells whether a topic belongs to the broker: it is not created, changed or deleted."""
    return (
        name in _RESERVED_TOPICS
        or name.startswith(SYSTEM_TOPIC_PREFIX)
        or name in (cluster_name, broker_name, f"{cluster_name}_REPLY_TOPIC")
    )


def system_topic_names(*, cluster_name: str, broker_name: str) -> list[str]:
    """Returns the names of all reserved topics, sorted, for code 305."""
    return sorted(_RESERVED_TOPICS | {cluster_name, broker_name, f"{cluster_name}_REPLY_TOPIC"})


def is_system_group(name: str) -> bool:
    """Tells whether a group is built in."""
    return name in _SYSTEM_GROUPS or name.startswith(SYSTEM_GROUP_PREFIX)


def retry_topic(group: str) -> str:
    """Returns the name of a group's retry topic."""
    return RETRY_PREFIX + group


def retry_topic_config(group: str, queue_count: int) -> TopicConfig:
    """Returns the retry topic that a consumer group needs."""
    return _topic(retry_topic(group), max(1, queue_count))


def group_of_retry_topic(topic: str) -> str | None:
    """Returns the group whose retry topic this is, None for other topics."""
    return topic[len(RETRY_PREFIX) :] if topic.startswith(RETRY_PREFIX) else None


def is_dead_letter_topic(topic: str) -> bool:
    """Tells whether a topic holds a group's dead letters."""
    return topic.startswith(DEAD_LETTER_PREFIX)


def _topic(
    name: str, queue_count: int, permission: int = int(Permission.READ | Permission.WRITE)
) -> TopicConfig:
    return TopicConfig(
        name=name,
        read_queue_count=queue_count,
        write_queue_count=queue_count,
        permission=permission,
    )
