"""The server over real sockets: garbage, greed, silence, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest

from dledger.errors import (
    ConfigError,
    ConnectionLostError,
    InvalidParameterError,
    RequestTimeoutError,
)
from dledger.remoting.commands import encode_binary, encode_request, encode_response
from dledger.remoting.nameserver_headers import GetRouteHeader
from dledger.remoting.server import RemotingServer, ServerConfig
from tests.support.remoting_peers import ScriptedHandler, echo, raw_peer, run, serving, until

GARBAGE = [
    pytest.param(struct.pack(">I", 0x7FFFFFFF), id="2 GB length"),
    pytest.param(b"\xff" * 64, id="negative length"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", id="TLS"),
    pytest.param(struct.pack(">II", 3, 0), id="short length"),
    pytest.param(struct.pack(">II", 8, 100), id="header longer than frame"),
    pytest.param(struct.pack(">II", 8, 0x05000004) + b"{}{}", id="header type"),
    pytest.param(struct.pack(">II", 6, 2) + b"{]", id="no JSON"),
    pytest.param(struct.pack(">II", 6, 0x01000002) + b"ab", id="torn binary header"),
]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def fast_loop(request):
    return request.param


def warnings_of(caplog):
    return [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_pipelined_requests_in_both_encodings(fast_loop):
    async def main():
        async with serving(ScriptedHandler(echo)) as (_, address), raw_peer(address) as peer:
            peer.send(
                encode_request(10, 1, {"a": 1}, b"one")
                + encode_binary(10, -2, {"a": 2}, b"two")
                + encode_request(10, 3, oneway=True)
                + encode_request(10, 4)
            )
            answers = [await peer.receive() for _ in range(3)]
            assert [(a.opaque, a.flag, a.ext, a.body) for a in answers] == [
                (1, 1, {"a": "1"}, b"one"),
                (-2, 1, {"a": "2"}, b"two"),
                (4, 1, {}, b""),
            ]

    run(main, fast_loop=fast_loop)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_closes_its_own_connection_with_one_log_line(garbage, fast_loop, caplog):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (_, address), raw_peer(address) as good:
            good.request(10, 1)
            assert (await good.receive()).opaque == 1
            async with raw_peer(address) as bad:
                bad.request(10, 5, None, b"before")
                bad.send(garbage)
                assert (await bad.receive()).body == b"before"
                assert await bad.receive() is None
            good.request(10, 2)
            assert (await good.receive()).opaque == 2
            await until(lambda: len(handler.lost) == 1)
        assert len(handler.requests) == 3

    run(main, fast_loop=fast_loop)
    [warning] = warnings_of(caplog)
    assert "malformed frame" in warning.getMessage()


def test_half_frames_are_no_news(caplog):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (_, address):
            data = encode_request(10, 1, {"a": "b"}, b"body")
            for cut in (1, 4, 7, 9, len(data) - 1):
                async with raw_peer(address) as peer:
                    peer.send(data[:cut])
            await until(lambda: len(handler.lost) == 5)
            assert handler.requests == []

    run(main)
    assert warnings_of(caplog) == []


def test_slow_half_frames_are_put_together(fast_loop):
    async def main():
        async with serving(ScriptedHandler(echo)) as (_, address), raw_peer(address) as peer:
            data = encode_request(10, 1, {"a": "b"}, b"x" * 300_000)
            for at in range(0, len(data), 10_007):
                peer.send(data[at : at + 10_007])
                await peer.writer.drain()
                await asyncio.sleep(0)
            assert len((await peer.receive()).body) == 300_000

    run(main, fast_loop=fast_loop)


def test_a_handlers_exception_is_an_answer_and_one_log_line(caplog):
    def answer(connection, command):
        if command.code == 1:
            raise ValueError("a bug")
        if command.code == 2:
            command.header(GetRouteHeader)
        echo(connection, command)

    async def main():
        async with serving(ScriptedHandler(answer)) as (_, address), raw_peer(address) as peer:
            peer.request(1, 1)
            failed = await peer.receive()
            assert (failed.code, failed.ext) == (1, {"dlOutcome": "unknown"})
            assert "a bug" in failed.remark
            peer.send(encode_request(1, 2, oneway=True))
            peer.request(3, 3)
            assert (await peer.receive()).opaque == 3

    run(main)
    assert [record.levelname for record in warnings_of(caplog)] == ["ERROR", "ERROR"]


def test_errors_are_answered_with_code_and_outcome():
    def answer(connection, command):
        try:
            command.header(GetRouteHeader)
        except InvalidParameterError as exc:
            connection.reply_error(command, exc, {"dlTerm": 7})

    async def main():
        async with serving(ScriptedHandler(answer)) as (_, address), raw_peer(address) as peer:
            peer.request(105, 1)
            failed = await peer.receive()
            assert failed.code == 29
            assert failed.ext == {"dlOutcome": "refused", "dlTerm": "7"}
            assert "topic" in failed.remark

    run(main)


def test_an_answer_given_twice_is_sent_once(caplog):
    def answer(connection, command):
        connection.reply(command, 0, body=b"first")
        connection.reply(command, 0, body=b"second")

    async def main():
        async with (
            serving(ScriptedHandler(answer)) as (server, address),
            raw_peer(address) as peer,
        ):
            peer.request(10, 1)
            peer.request(10, 2)
            assert [(await peer.receive()).body for _ in range(2)] == [b"first", b"first"]
            assert server.inflight == 0

    run(main)
    assert len(warnings_of(caplog)) == 2


def test_an_answer_that_is_too_large_becomes_an_error(caplog):
    def answer(connection, command):
        connection.reply(command, 0, body=bytes(16 * 1024 * 1024))

    async def main():
        async with serving(ScriptedHandler(answer)) as (_, address), raw_peer(address) as peer:
            peer.request(10, 1)
            assert (await peer.receive()).code == 1

    run(main)
    assert len(warnings_of(caplog)) == 1


def test_bodies_of_several_buffers(fast_loop):
    def answer(connection, command):
        data = bytearray(b"x" * 200_000)
        connection.reply(command, 0, body=[b"a", memoryview(data), bytearray(b"b"), b""])

    async def main():
        async with serving(ScriptedHandler(answer)) as (_, address), raw_peer(address) as peer:
            peer.request(10, 1)
            assert (await peer.receive()).body == b"a" + b"x" * 200_000 + b"b"

    run(main, fast_loop=fast_loop)


# --- limits -------------------------------------------------------------------------------------


def test_a_peer_that_does_not_read_is_not_read_from(fast_loop):
    """The server's memory stays near the high-water mark, and nothing is lost when it reads."""
    size = 100_000
    count = 2000

    def answer(connection, command):
        connection.reply(command, 0, body=bytes(size))

    async def main():
        handler = ScriptedHandler(answer)
        config = {"write_high_water_bytes": 500_000}
        async with serving(handler, **config) as (server, address), raw_peer(address) as peer:
            peer.reader._limit = 10_000  # the test's own side must not read ahead either
            requests = b"".join(encode_request(10, n, None, b"q" * 1000) for n in range(count))
            peer.send(requests)
            await until(lambda: len(handler.requests) > 1)
            handled = -1
            while handled != len(handler.requests):  # until nothing moves any more
                handled = len(handler.requests)
                await asyncio.sleep(0.1)
            [connection] = server.connections
            assert handled < count
            assert connection.write_buffered_bytes < 1_500_000
            for opaque in range(count):
                got = await peer.receive()
                assert (got.opaque, len(got.body)) == (opaque, size)

    run(main, fast_loop=fast_loop)


def test_a_peer_that_never_reads_what_is_pushed_is_given_up(fast_loop, caplog):
    async def main():
        handler = ScriptedHandler(echo)
        config = {"write_bytes_max": 1_000_000}
        async with serving(handler, **config) as (server, address), raw_peer(address):
            await until(lambda: server.connections)
            [connection] = server.connections
            while not connection.is_closing:
                connection.send_oneway(40, {"g": "g"}, bytes(100_000))
                await asyncio.sleep(0)
            await until(lambda: handler.lost == [connection])
            connection.send_oneway(40)

    run(main, fast_loop=fast_loop)
    [warning] = warnings_of(caplog)
    assert "does not read" in warning.getMessage()


def test_requests_under_way_are_limited_per_connection(fast_loop):
    async def main():
        handler = ScriptedHandler()
        async with (
            serving(handler, inflight_max=3) as (server, address),
            raw_peer(address) as peer,
        ):
            for opaque in range(10):
                peer.request(10, opaque)
            await until(lambda: len(handler.requests) == 3)
            await asyncio.sleep(0.05)
            assert len(handler.requests) == 3
            async with raw_peer(address) as other:
                other.request(10, 100)
                await until(lambda: len(handler.requests) == 4)

            def waiting():
                return [(c, r) for c, r in handler.requests if r.opaque < 100 and not r.answered]

            for _ in range(10):
                await until(waiting)
                assert len(waiting()) <= 3
                echo(*waiting()[0])
            assert [(await peer.receive()).opaque for _ in range(10)] == list(range(10))
            await until(lambda: server.inflight == 0)

    run(main, fast_loop=fast_loop)


def test_bytes_under_way_are_limited_over_all_connections():
    async def main():
        handler = ScriptedHandler()
        config = {"inflight_bytes_max": 2500}
        async with serving(handler, **config) as (server, address), raw_peer(address) as peer:
            for opaque in range(3):
                peer.request(10, opaque, None, bytes(1000))
            busy = await peer.receive()
            assert (busy.opaque, busy.code) == (2, 2)
            assert busy.ext == {"dlOutcome": "refused"}
            assert busy.remark.startswith("[OVERLOAD]")
            peer.send(encode_request(10, 3, None, bytes(1000), oneway=True))
            peer.request(34, 4)  # a request without a body always passes
            await until(lambda: len(handler.requests) == 3)
            for connection, command in handler.requests:
                echo(connection, command)
            assert server.inflight_bytes == 0
            peer.request(10, 5, None, bytes(1000))
            await until(lambda: len(handler.requests) == 4)

    run(main)


def test_a_lost_connection_gives_back_its_places(fast_loop):
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (server, address):
            async with raw_peer(address) as peer:
                for opaque in range(5):
                    peer.request(10, opaque, None, b"body")
                await until(lambda: len(handler.requests) == 5)
                assert (server.inflight, server.inflight_bytes) == (5, 20)
            await until(lambda: handler.lost)
            assert (server.inflight, server.inflight_bytes) == (0, 0)
            for connection, command in handler.requests:
                echo(connection, command)  # too late, and harmless
            assert (server.inflight, server.inflight_bytes) == (0, 0)

    run(main, fast_loop=fast_loop)


def test_connections_are_limited(caplog):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler, connections_max=1) as (_, address):
            async with raw_peer(address) as first:
                first.request(10, 1)
                await first.receive()
                async with raw_peer(address) as second:
                    assert await second.receive() is None
                first.request(10, 2)
                assert (await first.receive()).opaque == 2
            await until(lambda: len(handler.lost) == 1)
            async with raw_peer(address) as third:
                third.request(10, 3)
                assert (await third.receive()).opaque == 3

    run(main)
    assert len(warnings_of(caplog)) == 1


def test_silent_connections_are_closed():
    async def main():
        handler = ScriptedHandler(echo)
        async with (
            serving(handler, idle_timeout_s=0.3) as (_, address),
            raw_peer(address) as silent,
            raw_peer(address) as lively,
        ):
            ended = asyncio.ensure_future(silent.receive())
            while not ended.done():
                lively.request(34, 1)
                assert (await lively.receive()).opaque == 1
                await asyncio.sleep(0.02)
            assert ended.result() is None

    run(main)


def test_bad_limits_are_refused():
    for field in ("inflight_max", "frame_bytes_max", "idle_timeout_s"):
        with pytest.raises(ConfigError, match=field):
            ServerConfig(**{field: 0})
    with pytest.raises(ConfigError, match="frame_bytes_max"):
        ServerConfig(frame_bytes_max=2**30)


# --- the server's own requests ------------------------------------------------------------------


def test_requests_of_the_server(fast_loop):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (server, address), raw_peer(address) as peer:
            await until(lambda: server.connections)
            [connection] = server.connections
            connection.send_oneway(40, {"consumerGroup": "g"})
            pushed = await peer.receive()
            assert (pushed.code, pushed.is_oneway, pushed.ext) == (40, True, {"consumerGroup": "g"})
            asked = asyncio.ensure_future(connection.request(307, {"a": 1}, b"body", 5))
            request = await peer.receive()
            assert (request.code, request.body, request.is_response) == (307, b"body", False)
            peer.request(10, request.opaque)  # the same number in the other direction
            assert (await peer.receive()).opaque == request.opaque
            peer.send(encode_response(0, request.opaque, {"b": 2}))
            assert (await asked).ext == {"b": "2"}
            peer.send(encode_response(0, request.opaque))  # nobody waits any more
            with pytest.raises(RequestTimeoutError):
                await connection.request(307, timeout_s=0.01)
            lost = asyncio.ensure_future(connection.request(307, timeout_s=20))
            assert (await peer.receive()).code == 307  # the one that timed out
            assert (await peer.receive()).code == 307
            await peer.close()
            with pytest.raises(ConnectionLostError):
                await lost
            assert len(handler.requests) == 1

    run(main, fast_loop=fast_loop)


# --- the end ------------------------------------------------------------------------------------


def test_stop_lets_requests_under_way_be_answered(fast_loop):
    async def main():
        handler = ScriptedHandler()
        server = RemotingServer(handler)
        await server.start("127.0.0.1", 0)
        address = f"127.0.0.1:{server.port}"
        async with raw_peer(address) as peer:
            peer.request(10, 1)
            await until(lambda: handler.requests)
            stopping = asyncio.ensure_future(server.stop(20))
            await asyncio.sleep(0)
            peer.request(10, 2)
            await until(lambda: server.port == 0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address.split(":"))
            assert not stopping.done()
            connection, command = handler.requests[0]
            connection.reply(command, 0, body=bytes(3_000_000))
            assert len((await peer.receive()).body) == 3_000_000
            assert await peer.receive() is None
            await peer.close()
            await stopping
            assert len(handler.requests) == 1
            assert handler.lost == [connection]

    run(main, fast_loop=fast_loop)


def test_stop_does_not_wait_for_ever(fast_loop, caplog):
    async def main():
        handler = ScriptedHandler()
        server = RemotingServer(handler)
        await server.start("127.0.0.1", 0)
        async with raw_peer(f"127.0.0.1:{server.port}") as peer:
            peer.request(10, 1)
            await until(lambda: handler.requests)
            connection, command = handler.requests[0]
            connection.send_oneway(40, None, bytes(15_000_000))  # which the peer does not read
            await server.stop(0.1)
            assert connection.is_closing
            connection.reply(command)
        await server.stop(0.1)

    run(main, fast_loop=fast_loop)
    assert "1 unanswered" in warnings_of(caplog)[0].getMessage()


def test_a_port_in_use_is_one_clear_error():
    async def main():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*in use"):
                await RemotingServer(ScriptedHandler()).start("127.0.0.1", port)
        with pytest.raises(ConfigError):
            await RemotingServer(ScriptedHandler()).start("127.0.0.1", 70000)

    run(main)
