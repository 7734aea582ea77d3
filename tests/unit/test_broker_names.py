"""What topic and group names mean."""

import pytest

from broker import names


def topics(**changes):
    settings = {
        "cluster_name": "C",
        "broker_name": "b",
        "template_queue_count": 8,
        "auto_create": True,
        **changes,
    }
    return {topic.name: topic for topic in names.system_topics(**settings)}


def test_a_new_group_has_the_topics_that_clients_expect():
    found = topics()
    assert set(found) == {
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
        "BenchmarkTest",
        "RMQ_SYS_TRACE_TOPIC",
        "SCHEDULE_TOPIC_XXXX",
        "rmq_sys_wheel_timer",
        "C_REPLY_TOPIC",
        "C",
        "b",
        "TBW102",
    }
    assert (found["TBW102"].write_queue_count, found["TBW102"].permission) == (8, 7)
    assert (found["C"].read_queue_count, found["b"].read_queue_count) == (16, 1)


def test_without_auto_creation_there_is_no_template():
    assert "TBW102" not in topics(auto_create=False)


def test_equal_cluster_and_broker_names_make_one_topic():
    assert list(topics(cluster_name="b")).count("b") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TBW102", True),
        ("rmq_sys_wheel_timer", True),
        ("C", True),
        ("b", True),
        ("C_REPLY_TOPIC", True),
        ("orders", False),
        ("%RETRY%g", False),
    ],
)
def test_system_topics_are_told_from_users_topics(name, expected):
    assert names.is_system_topic(name, cluster_name="C", broker_name="b") is expected


def test_every_system_topic_is_listed_and_reserved():
    listed = names.system_topic_names(cluster_name="C", broker_name="b")
    assert set(topics()) <= set(listed)
    assert listed == sorted(listed)
    for name in listed:
        assert names.is_system_topic(name, cluster_name="C", broker_name="b")


def test_retry_topics_and_their_groups():
    assert names.retry_topic("g") == "%RETRY%g"
    assert names.group_of_retry_topic("%RETRY%g") == "g"
    assert names.group_of_retry_topic("g") is None
    assert names.retry_topic_config("g", 0).write_queue_count == 1
    assert names.is_dead_letter_topic("%DLQ%g")
    assert not names.is_dead_letter_topic("g")


def test_built_in_groups():
    assert names.is_system_group("TOOLS_CONSUMER")
    assert names.is_system_group("CID_RMQ_SYS_TRANS")
    assert not names.is_system_group("billing")
