"""The quick ways of the producer's batching give what the plain ones give."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dledger.client.batching import Pending, encode_elements, give_keys, take_batch
from dledger.client.config import ProducerConfig
from dledger.client.encoding import MessageEncoder
from dledger.message import (
    Message,
    UniqueKeyGenerator,
    decode_properties,
    encode_batch_element,
    iter_batch,
    message_properties,
)

LOOP = asyncio.new_event_loop()
FUTURE: asyncio.Future[object] = LOOP.create_future()
LOOP.close()

ITEMS = st.lists(
    st.builds(
        lambda key, body, properties, flag, alone, keys: Pending(
            FUTURE, key, b"b" * body, b"p" * properties, flag, alone=alone, keys=("K",) * keys
        ),
        st.sampled_from(["", "", "K" * 32]),
        st.sampled_from([0, 1, 1, 1, 90]),
        st.sampled_from([0, 0, 0, 5]),
        st.sampled_from([0, 0, 0, -1]),
        st.sampled_from([False] * 9 + [True]),
        st.sampled_from([0] * 9 + [3]),
    ),
    max_size=40,
)
MESSAGES = ITEMS.map(lambda items: [item for item in items if not item.keys])


def plain_take(waiting: list[Pending], count_max: int, bytes_max: int) -> list[Pending]:
    """Returns what a batch takes, by its description."""
    batch: list[Pending] = []
    for item in waiting:
        if batch and (item.alone or batch[0].alone):
            break
        if batch and sum(one.count for one in [*batch, item]) > count_max:
            break
        if batch and sum(one.size_bytes for one in [*batch, item]) > bytes_max:
            break
        batch.append(item)
    return batch


@given(ITEMS, st.integers(1, 50), st.integers(1, 3000))
def test_a_batch_takes_what_its_description_says(items, count_max, bytes_max):
    waiting = deque(items)
    batch = take_batch(waiting, count_max=count_max, bytes_max=bytes_max)
    assert [id(item) for item in batch] == [
        id(item) for item in plain_take(items, count_max, bytes_max)
    ]
    assert [id(item) for item in [*batch, *waiting]] == [id(item) for item in items]


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=20),
    st.sampled_from(["", "a"]),
    st.sampled_from(
        [{}, {}, {"flag": 3}, {"tags": "b"}, {"keys": ["k"]}, {"properties": {"p": "q"}}]
    ),
    st.data(),
)
def test_a_user_made_batch_holds_its_messages_and_their_keys(bodies, tags, odd, data):
    messages = [Message("t", body, tags=tags) for body in bodies]
    place = data.draw(st.integers(0, len(bodies) - 1))
    messages[place] = msgspec.structs.replace(messages[place], **odd)
    encoder = MessageEncoder(ProducerConfig(), UniqueKeyGenerator())
    for _ in range(2):  # tags are known the second time
        item = encoder.encode_batch(messages, FUTURE)
        elements = list(iter_batch(item.body))
        assert len(set(item.keys)) == len(messages)
        for message, element, key in zip(messages, elements, item.keys, strict=True):
            assert (element.flag, bytes(element.body)) == (message.flag, message.body)
            expected = {**message_properties(message), "UNIQ_KEY": key}
            assert decode_properties(element.properties) == expected
            assert element.properties.endswith(b"\x02")


@given(MESSAGES)
def test_keys_are_given_once_and_elements_are_those_of_the_codec(items):
    keys = UniqueKeyGenerator()
    before = [(item.key, item.properties, item.size_bytes) for item in items]
    give_keys(items, keys.take)
    given = [(item.key, item.properties) for item in items]
    give_keys(items, keys.take)
    assert given == [(item.key, item.properties) for item in items]
    for item, (key, properties, size) in zip(items, before, strict=True):
        if key:
            assert (item.key, item.properties) == (key, properties)
        else:
            assert item.properties == properties + b"UNIQ_KEY\x01%b\x02" % item.key.encode()
        assert item.size_bytes == size  # known before the key is
    assert len({item.key for item in items if item.key != "K" * 32}) == sum(
        not key for key, _, _ in before
    )
    assert encode_elements(items) == b"".join(
        encode_batch_element(item.body, item.properties, item.flag) for item in items
    )


MESSAGES = st.builds(
    Message,
    st.just("t"),
    st.integers(0, 300).map(bytes),
    tags=st.sampled_from(["", "a", "b"]),
    flag=st.sampled_from([0, 0, 0, 3]),
    properties=st.sampled_from([{}, {}, {"p": "q"}, {"DELAY": "3"}, {"UNIQ_KEY": "mine"}]),
    keys=st.sampled_from([(), (), ("k",)]),
)


@given(
    st.lists(MESSAGES, max_size=10),
    st.sampled_from([0, 100]),
    st.sampled_from([150, 4096, 1024 * 1024]),
)
def test_the_quick_way_of_encoding_is_the_plain_one(messages, compress_min, batch_bytes_max):
    config = ProducerConfig(compress_min_bytes=compress_min, batch_bytes_max=batch_bytes_max)
    encoder = MessageEncoder(config, UniqueKeyGenerator())
    for message in messages:
        quick = encoder.encode(message, FUTURE)
        plain = encoder._encode_any(message, FUTURE)
        encoder.give_keys([quick, plain])
        for item in (quick, plain):
            properties = decode_properties(item.properties)
            assert properties["UNIQ_KEY"] == item.key
            assert properties.get("TAGS", "") == message.tags
        assert len(quick.properties) == len(plain.properties)
        for name in ("body", "flag", "sys_flag", "alone", "size_bytes"):
            assert getattr(quick, name) == getattr(plain, name)
