"""What one request costs the remoting layer, in microseconds, without a socket.

Run: python benchmarks/remoting_cost.py [--profile]
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import Callable

from dledger import message as m
from dledger.remoting.commands import Command, decode_command, encode_request
from dledger.remoting.frames import FrameDecoder
from dledger.remoting.headers import PullMessageHeader, SendMessageHeaderV2
from dledger.remoting.server import Connection, RemotingServer

FRAMES = 200  # in one read, about what fits into 256 KiB
ROUNDS = 50

PROPERTIES = m.encode_properties(
    {"UNIQ_KEY": m.UniqueKeyGenerator()(), "WAIT": "true", "TAGS": "a"}
)
SEND = SendMessageHeaderV2(
    producer_group="pg",
    topic="TopicTest",
    queue_id=1,
    born_timestamp_ms=1700000000000,
    properties=PROPERTIES.decode(),
)
PULL = PullMessageHeader(
    consumer_group="cg", topic="TopicTest", queue_id=1, queue_offset=5, suspend_timeout_ms=15000
)
SEND_ANSWER = (
    b'{"msgId":"0A00000200002A9F00000000000003E8","queueId":"1","queueOffset":"5",'
    b'"MSG_REGION":"DefaultRegion","TRACE_ON":"true"}'
)


class NullTransport(asyncio.Transport):
    """Takes everything and counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1

    def writelines(self, list_of_data: object) -> None:
        self.writes += 1

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Answering:
    """Decodes the header of each request and answers it."""

    def __init__(self, typed: bool) -> None:
        self.typed = typed

    def handle(self, connection: Connection, command: Command) -> None:
        if self.typed:
            command.header(SendMessageHeaderV2)
            connection.reply_raw(command, 0, SEND_ANSWER)
        else:
            connection.reply(command, 0)

    def connection_lost(self, connection: Connection) -> None:
        pass


def per_call(work: Callable[[], object], calls: int) -> float:
    """Returns microseconds of processor time per call: the best of five runs."""
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(ROUNDS):
            work()
        best = min(best, time.process_time() - begin)
    return best / ROUNDS / calls * 1e6


async def server_cost(data: bytes, typed: bool) -> float:
    server = RemotingServer(Answering(typed))
    connection = server._new_connection()
    connection.connection_made(NullTransport())

    def one_read() -> None:
        connection.data_received(data)
        connection._flush()

    result = per_call(one_read, FRAMES)
    await asyncio.sleep(0)
    return result


def main() -> None:
    sends = [encode_request(310, n, SEND, b"x" * 1024) for n in range(FRAMES)]
    data = b"".join(sends)

    def decode_frames() -> None:
        decoder = FrameDecoder()
        decoder.receive_data(data)
        while decoder.next_frame() is not None:
            pass

    decoder = FrameDecoder()
    decoder.receive_data(sends[0])
    frame = decoder.next_frame()
    assert frame is not None
    command = decode_command(frame)
    host = m.pack_host("127.0.0.1", 10911)
    fields = {
        "topic": b"TopicTest",
        "queue_id": 1,
        "flag": 0,
        "queue_offset": 0,
        "physical_offset": 0,
        "sys_flag": 0,
        "born_timestamp_ms": 1,
        "born_host": host,
        "store_timestamp_ms": 2,
        "store_host": host,
        "reconsume_times": 0,
        "prepared_transaction_offset": 0,
        "body": b"x" * 1024,
        "properties": PROPERTIES,
    }
    stored = m.encode_stored(**fields)
    batch = m.encode_batch_element(b"x" * 1024, PROPERTIES) * 100
    generate = m.UniqueKeyGenerator()
    rows: dict[str, float] = {
        "frame cut out of the stream": per_call(decode_frames, FRAMES),
        "command decoded": per_call(lambda: decode_command(frame), 1),
        "send header typed": per_call(lambda: command.header(SendMessageHeaderV2), 1),
        "server: whole send request, reply_raw": asyncio.run(server_cost(data, True)),
        "server: whole send request, header not looked at, bare reply": asyncio.run(
            server_cost(data, False)
        ),
        "client: request encoded": per_call(lambda: encode_request(11, 1, PULL), 1),
        "message encoded as stored": per_call(lambda: m.encode_stored(**fields), 1),
        "stored message decoded": per_call(lambda: m.decode_stored(stored), 1),
        "the same among 100 of one answer": per_call(lambda: m.decode_run(stored * 100), 100),
        "batch element encoded": per_call(lambda: m.encode_batch_element(b"x", PROPERTIES), 1),
        "batch of 100 taken apart, each": per_call(lambda: list(m.iter_batch(batch)), 100),
        "unique key": per_call(generate, 1),
        "the same among 100 of a batch": per_call(lambda: generate.take(100), 100),
    }
    for name, microseconds in rows.items():
        print(f"{microseconds:8.2f} µs  {name}")
    if "--profile" in sys.argv:
        with cProfile.Profile() as profile:
            asyncio.run(server_cost(data, True))
        pstats.Stats(profile).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()
