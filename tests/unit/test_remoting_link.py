"""How a link gathers what it sends."""

from __future__ import annotations

import asyncio

import pytest

from dledger.errors import InvariantError
from dledger.remoting.commands import Command, encode_request
from dledger.remoting.frames import decode_frames
from dledger.remoting.server import Connection, RemotingServer, ServerConfig
from tests.support.remoting_peers import ScriptedHandler, echo, run


class RecordingTransport(asyncio.Transport):
    """Remembers each write; takes nothing while `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True

    def write(self, data) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data) -> None:
        self.writes.append(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connected(handler: ScriptedHandler, **config) -> tuple[Connection, RecordingTransport]:
    server = RemotingServer(handler, ServerConfig(**config))
    connection = server._new_connection()
    transport = RecordingTransport()
    connection.connection_made(transport)
    return connection, transport


def requests(count: int, size: int = 10) -> bytes:
    return b"".join(encode_request(10, n, {"n": n}, bytes(size)) for n in range(count))


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("count", "size"), [(1, 0), (50, 10), (50, 10_000)])
def test_answers_of_one_turn_leave_in_one_write(count, size):
    async def main():
        connection, transport = connected(ScriptedHandler(echo), write_high_water_bytes=10_000_000)
        connection.data_received(requests(count, size))
        assert transport.writes == []
        await turns()
        [written] = transport.writes
        assert len(list(decode_frames(written))) == count
        connection.data_received(requests(1))
        connection.send_oneway(40)
        await turns()
        assert len(transport.writes) == 2

    run(main)


def test_what_is_gathered_is_limited():
    async def main():
        connection, transport = connected(ScriptedHandler(echo), write_high_water_bytes=10_000)
        connection.data_received(requests(50, 1000))
        assert 4 <= len(transport.writes) <= 6
        await turns()
        assert len(list(decode_frames(b"".join(transport.writes)))) == 50

    run(main)


def test_a_full_peer_is_not_read_from_until_it_has_drained():
    async def main():
        handler = ScriptedHandler(echo)
        connection, transport = connected(handler)
        connection.pause_writing()
        assert not transport.reading
        connection.data_received(requests(3))  # what had come before the pause took effect
        assert handler.requests == []
        connection.resume_writing()
        assert transport.reading
        await turns()
        assert len(handler.requests) == 3

    run(main)


def test_broken_invariants_are_not_turned_into_answers():
    def broken(connection: Connection, command: Command) -> None:
        raise InvariantError("must end the process")

    async def main():
        connection, _ = connected(ScriptedHandler(broken))
        with pytest.raises(InvariantError):
            connection.data_received(requests(1))

    run(main)
