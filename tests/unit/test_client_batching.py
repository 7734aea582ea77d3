from __future__ import annotations

import asyncio
from collections import deque

import pytest

from dledger.client.batching import Pending, encode_elements, put_back, share_count, take_batch
from dledger.client.config import ProducerConfig
from dledger.client.encoding import MessageEncoder
from dledger.client.topics import TopicLines
from dledger.errors import MessageRejectedError
from dledger.message import (
    Message,
    UniqueKeyGenerator,
    decode_properties,
    decompress_body,
    encode_batch_element,
    iter_batch,
)


def pending(body: bytes = b"x", *, alone: bool = False) -> Pending:
    loop = asyncio.new_event_loop()
    try:
        return Pending(loop.create_future(), "K", body, b"", alone=alone)
    finally:
        loop.close()


def encoder(**settings: int) -> MessageEncoder:
    return MessageEncoder(ProducerConfig(**settings), UniqueKeyGenerator())  # type: ignore[arg-type]


def encode(message: Message, **settings: int) -> Pending:
    loop = asyncio.new_event_loop()
    try:
        maker = encoder(**settings)
        item = maker.encode(message, loop.create_future())
        maker.give_keys([item])
        return item
    finally:
        loop.close()


def test_elements_are_what_the_message_codec_writes() -> None:
    items = [
        Pending(pending().future, "K", b"body", b"a\x01b\x02", flag=7),
        Pending(pending().future, "L", b"", b""),
    ]
    assert encode_elements(items) == b"".join(
        encode_batch_element(item.body, item.properties, item.flag) for item in items
    )
    assert [bytes(element.body) for element in iter_batch(encode_elements(items))] == [b"body", b""]


def test_a_batch_keeps_order_and_its_bounds() -> None:
    waiting = deque(pending(b"%d" % number) for number in range(10))
    batch = take_batch(waiting, count_max=4, bytes_max=10**6)
    assert [item.body for item in batch] == [b"0", b"1", b"2", b"3"]
    put_back(waiting, batch)
    assert [item.body for item in waiting] == [b"%d" % number for number in range(10)]
    assert len(take_batch(waiting, count_max=100, bytes_max=23 * 3)) == 3
    assert len(take_batch(waiting, count_max=100, bytes_max=1)) == 1  # never none


def test_what_wants_to_be_alone_is() -> None:
    waiting = deque([pending(b"a"), pending(b"b", alone=True), pending(b"c")])
    sizes = []
    while waiting:
        sizes.append(len(take_batch(waiting, count_max=10, bytes_max=10**6)))
    assert sizes == [1, 1, 1]


def user_batch(count: int) -> Pending:
    item = pending(b"b" * 10 * count)
    item.keys = ("K",) * count
    return item


def test_user_made_batches_share_a_request_and_count_as_their_messages() -> None:
    waiting = deque([pending(), *(user_batch(3) for _ in range(4)), pending()])
    taken = []
    while waiting:
        taken.append([item.count for item in take_batch(waiting, count_max=7, bytes_max=10**6)])
    assert taken == [[1, 3, 3], [3, 3, 1]]
    elements = encode_elements([pending(b"x"), user_batch(2), pending(b"y")])
    assert elements == encode_batch_element(b"x", b"") + b"b" * 20 + encode_batch_element(b"y", b"")


def test_the_common_line_knows_its_messages_and_cuts_no_user_made_batch() -> None:
    topic = TopicLines("t")
    for _ in range(7):
        topic.place(user_batch(100), None, None)
    assert topic.waiting == 700
    batch = topic.take_batch(count_max=175, bytes_max=10**6)  # the even share of four lanes
    assert [item.count for item in batch] == [100, 100]
    assert topic.waiting == 500
    topic.return_batch(batch)
    assert topic.waiting == 700
    assert len(topic.take_unroutable()) == 7
    assert topic.waiting == 0


@pytest.mark.parametrize(
    ("waiting", "idle", "expected"),
    [(1000, 4, 250), (10, 4, 32), (0, 4, 32), (100_000, 4, 2000), (7, 0, 32)],
)
def test_shares(waiting: int, idle: int, expected: int) -> None:
    assert share_count(waiting, idle, count_min=32, count_max=2000) == expected


def test_encoding_gives_each_message_a_key_of_its_own() -> None:
    first = encode(Message("t", b"x", tags="A", keys=["k1", "k2"], properties={"p": "q"}))
    second = encode(Message("t", b"x", tags="A"))
    assert decode_properties(first.properties) == {
        "p": "q",
        "TAGS": "A",
        "KEYS": "k1 k2",
        "UNIQ_KEY": first.key,
    }
    assert decode_properties(second.properties) == {"TAGS": "A", "UNIQ_KEY": second.key}
    assert first.key != second.key
    assert len(first.key) == 32


def test_large_bodies_are_compressed_and_travel_alone() -> None:
    item = encode(Message("t", b"abc" * 3000))
    assert item.alone
    assert item.sys_flag & 1
    assert decompress_body(item.body, item.sys_flag) == b"abc" * 3000
    plain = encode(Message("t", b"abc" * 3000), compress_min_bytes=0)
    assert not plain.alone
    assert plain.sys_flag == 0


def test_delayed_messages_travel_alone() -> None:
    assert encode(Message("t", b"x", properties={"DELAY": "3"})).alone


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Message("t", b"x" * (4 * 1024 * 1024 + 1)), id="too-large"),
        pytest.param(Message("t", "text"), id="not-bytes"),  # type: ignore[arg-type]
        pytest.param(Message("t", b"", properties={"TRAN_MSG": "true"}), id="reserved"),
        pytest.param(Message("t", b"", properties={"a": "b\x01"}), id="separator"),
        pytest.param(Message("t", b"", tags="b\x02"), id="separator-in-tag"),
        pytest.param(Message("t", b"", keys=["a b"]), id="space-in-key"),
        pytest.param(Message("t", b"", flag=2**31), id="flag"),
        pytest.param(Message("t", b"", properties={"a": "x" * 40_000}), id="properties-too-long"),
    ],
)
def test_bad_messages_are_refused(message: Message) -> None:
    with pytest.raises(MessageRejectedError):
        encode(message)


def test_a_tag_that_fits_only_without_the_key_is_refused_alone() -> None:
    """It would make the batch that it shares with others fail as a whole."""
    with pytest.raises(MessageRejectedError, match="32767"):
        encode(Message("t", b"", tags="x" * 32_740))
    assert encode_elements([encode(Message("t", b"", tags="x" * 32_700))])
