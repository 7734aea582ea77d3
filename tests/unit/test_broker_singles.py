"""Single messages of many requests to many queues, as one part of a log entry."""

import asyncio
import json

import pytest

from broker.messages_command import (
    EncodedMessage,
    MessagesBuilder,
    Part,
    Singles,
    decode_messages,
)
from broker.state_machine import MessagesApplied
from dledger.errors import InvariantError
from dledger.remoting.frames import decode_frames, encode_frame
from store import state_keys as keys
from tests.support.send_sides import Side, Transport, make_intake

NOW = 1_700_000_000_000


def message(name: bytes, **more) -> EncodedMessage:
    return EncodedMessage(name * 100, unique_key=b"K" + name, **more)


def encode(*groups: Singles | tuple[int, int, Part]) -> bytes:
    builder, next_offsets = MessagesBuilder(), {}

    def take(topic_id: int, queue_id: int, count: int) -> int:
        first = next_offsets.get((topic_id, queue_id), 10 * queue_id)
        next_offsets[topic_id, queue_id] = first + count
        return first

    for group in groups:
        if isinstance(group, Singles):
            builder.add_singles(group)
        else:
            builder.add(*group)
    body = builder.encode(5000, NOW, take)
    assert len(body) == builder.size_bytes
    return bytes(body)


def test_singles_are_stored_as_parts_of_one_message_each():
    places = [(1, 0), (1, 3), (2, 0), (1, 0), (1, 3)]
    messages = [
        message(b"a", tag_hash=7),
        message(b"b", keys=(b"x", b"y", b"x")),
        message(b"c"),
        message(b"d"),
        EncodedMessage(b"e" * 95),
    ]
    before, after = Part(1, [message(b"f")]), Part(1, [message(b"g")])
    singles = Singles(places, messages)
    mixed = encode((1, 3, before), singles, (1, 3, after))
    parts = [(*place, Part(place[0], [each])) for place, each in zip(places, messages, strict=True)]
    apart = encode((1, 3, Part(1, before.messages)), *parts, (1, 3, Part(1, after.messages)))
    assert mixed == apart
    assert singles.queue_offsets == [0, 31, 0, 1, 32]
    assert singles.physical_offsets == [part.physical_offsets[0] for *_, part in parts]
    assert before.first_queue_offset == 30 and after.first_queue_offset == 33
    runs = decode_messages(mixed).runs
    assert [(run[0], run[1], len(run.units) // keys.UNIT_BYTES) for run in runs] == [
        (1, 3, 4),
        (1, 0, 2),
        (2, 0, 1),
    ]


def test_a_single_that_is_no_message_is_not_taken():
    with pytest.raises(InvariantError):
        Singles([(1, 0)], [EncodedMessage(b"x")])


def request(opaque: int, topic: str = "t", queue_id: int = 0) -> bytes:
    fields = {"a": "g", "b": topic, "e": queue_id, "g": 5, "i": f"UNIQ_KEY\x01K{opaque}\x02"}
    header = {"code": 310, "extFields": fields, "opaque": opaque, "language": "GO"}
    return encode_frame(json.dumps(header, separators=(",", ":")).encode(), b"body")


def answers(transport: Transport) -> list[tuple[int, int, str, str]]:
    headers = [json.loads(frame.header) for frame in decode_frames(transport.written)]
    return [
        (
            each["opaque"],
            each["code"],
            each["extFields"].get("queueId", ""),
            each["extFields"].get("queueOffset", ""),
        )
        for each in headers
    ]


async def gathered(side: Side, *reads: tuple[object, bytes]) -> None:
    for connection, data in reads:
        connection.data_received(data)
    for _ in range(3):
        await asyncio.sleep(0)


def test_all_connections_of_a_turn_share_an_entry_and_each_gets_its_answers():
    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        other, transport = side.server._new_connection(), Transport()
        other.connection_made(transport)
        await gathered(
            side,
            (side.connection, request(1) + request(2, queue_id=1)),
            (other, request(1, queue_id=1) + request(2)),
            (side.connection, request(3)),
        )
        assert (len(side.raft.entries), side.taken, side.server.inflight) == (1, 5, 5)
        (callback,) = side.raft.callbacks
        callback(MessagesApplied(), None)
        await asyncio.sleep(0)
        assert answers(side.transport) == [(1, 0, "0", "7"), (2, 0, "1", "7"), (3, 0, "0", "9")]
        assert answers(transport) == [(1, 0, "1", "8"), (2, 0, "0", "8")]
        assert (side.server.inflight, side.server.inflight_bytes) == (0, 0)

    asyncio.run(main())


def test_only_the_sends_to_a_topic_that_is_gone_are_refused():
    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        long = "a topic of 128 or more bytes".ljust(130, "x")
        await gathered(side, (side.connection, request(1) + request(2, long) + request(3)))
        (callback,) = side.raft.callbacks
        callback(MessagesApplied((2,)), None)
        await asyncio.sleep(0)
        assert sorted(answers(side.transport)) == [
            (1, 0, "0", "7"),
            (2, 17, "", ""),
            (3, 0, "0", "8"),
        ]
        assert (side.server.inflight, side.server.inflight_bytes) == (0, 0)
        assert side.statistics.put.total(0) == 2

    asyncio.run(main())


def test_a_general_send_comes_behind_the_short_ones_before_it():
    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        (frame,) = decode_frames(request(2))
        # Not as clients write it.
        general = encode_frame(frame.header.replace(b'"code":', b'"code": '), frame.body)
        await gathered(side, (side.connection, request(1) + general + request(3)))
        assert side.taken == 2
        side.raft.callbacks[0](MessagesApplied(), None)
        await asyncio.sleep(0)
        assert sorted(answers(side.transport)) == [
            (1, 0, "0", "7"),
            (2, 0, "0", "8"),
            (3, 0, "0", "9"),
        ]

    asyncio.run(main())


def test_what_was_taken_before_leadership_ended_goes_to_the_new_leader():
    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        side.connection.data_received(request(1))
        side.appender.on_stopped_serving()
        for _ in range(3):
            await asyncio.sleep(0)
        ((opaque, code, *_),) = answers(side.transport)
        assert opaque == 1 and code != 0 and not side.raft.entries
        assert (side.server.inflight, side.server.inflight_bytes) == (0, 0)

    asyncio.run(main())
