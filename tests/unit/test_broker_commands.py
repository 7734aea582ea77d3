"""Commands in the log: their bytes, and what happens to malformed ones."""

from __future__ import annotations

import pytest

from broker.commands import (
    OFFSETS_PER_COMMAND_MAX,
    CommandType,
    CommitOffsets,
    DeleteGroup,
    DeleteTopic,
    PutGroup,
    PutTopic,
    decode_control,
    encode_commit_offsets,
    encode_delete_group,
    encode_delete_topic,
    encode_put_group,
    encode_put_topic,
)
from dledger.errors import InvalidParameterError, InvariantError
from dledger.model import GroupConfig, TopicConfig

TOPIC = TopicConfig(name="t", read_queue_count=3, attributes={"a": "b"})
GROUP = GroupConfig(name="g", retry_max=2)
CASES = [
    (encode_put_topic(TOPIC, only_create=True), PutTopic(TOPIC, True)),
    (encode_put_topic(TOPIC), PutTopic(TOPIC, False)),
    (encode_delete_topic("t"), DeleteTopic("t")),
    (encode_put_group(GROUP), PutGroup(GROUP, False)),
    (encode_put_group(GROUP, only_create=True), PutGroup(GROUP, True)),
    (encode_delete_group("g", delete_offsets=False), DeleteGroup("g", False)),
    (encode_commit_offsets([("g", "t", 1, 2)]), CommitOffsets([("g", "t", 1, 2)])),
]


@pytest.mark.parametrize(("body", "command"), CASES)
def test_decoded_as_encoded(body: bytes, command: object) -> None:
    assert decode_control(body) == command
    assert decode_control(memoryview(body)) == command


def test_bytes_are_golden() -> None:
    assert encode_delete_topic("abc").hex() == "120191a3616263"
    assert encode_delete_group("g").hex() == "140192a167c3"
    assert encode_commit_offsets([("g", "t", 1, 300)]).hex() == "1501919194a167a17401cd012c"


def test_fields_of_newer_versions_are_ignored() -> None:
    assert decode_control(bytes.fromhex("120192a361626307")) == DeleteTopic("abc")


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "\ud800"])
def test_names_are_checked_before_they_reach_the_log(name: str) -> None:
    for encode in (
        lambda: encode_put_topic(TopicConfig(name=name)),
        lambda: encode_delete_topic(name),
        lambda: encode_put_group(GroupConfig(name=name)),
        lambda: encode_delete_group(name),
        lambda: encode_commit_offsets([(name, "t", 0, 0)]),
        lambda: encode_commit_offsets([("g", name, 0, 0)]),
    ):
        with pytest.raises(InvalidParameterError):
            encode()


@pytest.mark.parametrize(("queue_id", "offset"), [(-1, 0), (2**31, 0), (0, -1), (0, 2**63)])
def test_numbers_are_checked_before_they_reach_the_log(queue_id: int, offset: int) -> None:
    with pytest.raises(InvalidParameterError):
        encode_commit_offsets([("g", "t", queue_id, offset)])


@pytest.mark.parametrize("count", [0, OFFSETS_PER_COMMAND_MAX + 1])
def test_the_count_of_offsets_is_limited(count: int) -> None:
    with pytest.raises(InvalidParameterError):
        encode_commit_offsets([("g", "t", 0, 0)] * count)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x11", id="no version"),
        pytest.param(b"\x11\x02\x91\xa1a", id="other version"),
        pytest.param(b"\x7f\x01\x90", id="other type"),
        pytest.param(b"\x10\x01\x90", id="messages"),
        pytest.param(encode_delete_topic("abc")[:-1], id="torn"),
        pytest.param(encode_delete_topic("abc") + b"x", id="trailing"),
        pytest.param(b"\x12\x01\x91\xa0", id="empty name"),
        pytest.param(b"\x12\x01\x91\x05", id="wrong type of field"),
        pytest.param(bytes.fromhex("1501919194a167a17401ff"), id="negative offset"),
    ],
)
def test_malformed_commands_are_a_broken_invariant(body: bytes) -> None:
    with pytest.raises(InvariantError):
        decode_control(body)


def test_types_are_above_those_of_raft() -> None:
    assert all(type_ >= 16 for type_ in CommandType)
