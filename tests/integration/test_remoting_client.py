"""The client over real sockets: matching, deadlines, losses, and being asked itself."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
import time

import pytest

from dledger.errors import (
    ClientClosedError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    FlowControlError,
    LocalProtocolError,
    RequestTimeoutError,
)
from dledger.remoting.client import ClientConfig, RemotingClient, split_address
from tests.support.remoting_peers import ScriptedHandler, echo, run, serving, until


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def fast_loop(request):
    return request.param


class client_of:
    """A client that is closed at the end."""

    def __init__(self, on_request=None, on_connection_lost=None, **config):
        self.client = RemotingClient(ClientConfig(**config), on_request, on_connection_lost)

    async def __aenter__(self):
        return self.client

    async def __aexit__(self, *_):
        await self.client.close()


def test_answers_find_their_requests_in_any_order(fast_loop):
    async def main():
        chance = random.Random(1)
        held = []

        def answer(connection, command):
            held.append((connection, command))
            if len(held) == 50:
                chance.shuffle(held)
                for each in held:
                    echo(*each)
                held.clear()

        async with serving(ScriptedHandler(answer)) as (server, address), client_of() as client:
            answers = await asyncio.gather(
                *(client.request(address, 10, {"n": n}, b"%d" % n) for n in range(500))
            )
            assert [(a.ext, a.body) for a in answers] == [
                ({"n": str(n)}, b"%d" % n) for n in range(500)
            ]
            assert len(server.connections) == 1
            assert len(client.connections) == 1

    run(main, fast_loop=fast_loop)


def test_numbers_of_requests_wrap_around():
    async def main():
        async with serving(ScriptedHandler(echo)) as (_, address), client_of() as client:
            connection = await client.connect(address)
            connection._opaque = 2**31 - 2
            answers = await asyncio.gather(*(client.request(address, 10) for _ in range(4)))
            assert [a.opaque for a in answers] == [2**31 - 2, 2**31 - 1, -(2**31), -(2**31) + 1]

    run(main)


def test_a_request_without_an_answer_times_out_and_leaves_the_connection(fast_loop):
    async def main():
        handler = ScriptedHandler(lambda c, r: echo(c, r) if r.code != 1 else None)
        async with (
            serving(handler) as (server, address),
            client_of(request_timeout_s=0.05) as client,
        ):
            with pytest.raises(RequestTimeoutError) as caught:
                await client.request(address, 1)
            assert not caught.value.definite
            echo(*handler.requests[0])  # the answer comes too late and is dropped
            assert (await client.request(address, 10, None, b"next")).body == b"next"
            assert len(server.connections) == 1
            assert client.connections[0]._inflight == 0
            assert client.connections[0]._waiters == {}

    run(main, fast_loop=fast_loop)


def test_a_lost_connection_fails_all_waiters_at_once(fast_loop):
    async def main():
        handler = ScriptedHandler()
        lost = []
        async with (
            serving(handler) as (_, address),
            client_of(on_connection_lost=lost.append, request_timeout_s=25) as client,
        ):
            waiters = [asyncio.ensure_future(client.request(address, 10)) for _ in range(20)]
            await until(lambda: len(handler.requests) == 20)
            begin = time.monotonic()
            handler.requests[0][0]._transport.abort()
            results = await asyncio.gather(*waiters, return_exceptions=True)
            assert time.monotonic() - begin < 2
            assert {type(result) for result in results} == {ConnectionLostError}
            assert not results[0].definite
            assert len(lost) == 1
            handler.answer = echo
            assert (await client.request(address, 10)).code == 0  # a new connection

    run(main, fast_loop=fast_loop)


def test_what_was_not_written_before_the_loss_certainly_did_not_happen():
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (_, address), client_of() as client:
            connection = await client.connect(address)
            connection._transport.abort()
            with pytest.raises(ConnectFailedError) as caught:
                await client.request(address, 10)
            assert caught.value.definite
            assert handler.requests == []

    run(main)


def test_concurrent_requests_share_one_attempt_to_connect(fast_loop):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (server, address), client_of() as client:
            waiters = [asyncio.ensure_future(client.request(address, 10)) for _ in range(20)]
            await asyncio.sleep(0)
            waiters[0].cancel()  # must not take the connection from the others
            results = await asyncio.gather(*waiters, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert [r.code for r in results[1:]] == [0] * 19
            assert len(server.connections) == 1

    run(main, fast_loop=fast_loop)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nowhere.invalid:1", "", "host", ":1", "h:", "h:x", "h:70000", "h:²"]
)
def test_addresses_that_cannot_be_reached(address, fast_loop):
    async def main():
        async with client_of(connect_timeout_s=5) as client:
            with pytest.raises(ConnectFailedError) as caught:
                await client.request(address, 10)
            assert caught.value.definite
            with pytest.raises(ConnectFailedError):
                await client.send_oneway(address, 10)

    run(main, fast_loop=fast_loop)


def test_a_server_that_does_not_accept_times_out():
    async def main():
        async def never(*_args, **_kwargs):
            await asyncio.Event().wait()

        asyncio.get_running_loop().create_connection = never
        async with client_of(connect_timeout_s=0.05) as client:
            with pytest.raises(ConnectFailedError, match="timed out"):
                await client.request("127.0.0.1:9", 10)
        async with client_of(connect_timeout_s=20) as client:
            with pytest.raises(ConnectFailedError, match="timed out"):
                await client.request("127.0.0.1:9", 10, timeout_s=0.05)
            waiting = asyncio.ensure_future(client.request("127.0.0.1:9", 10))
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(ClientClosedError):
                await waiting

    run(main)


def test_split_address():
    assert split_address("a:1") == ("a", 1)
    assert split_address("[::1]:9876") == ("::1", 9876)


def test_oneway_requests_are_not_answered(fast_loop):
    async def main():
        handler = ScriptedHandler(echo)
        async with serving(handler) as (_, address), client_of() as client:
            for number in range(10):
                await client.send_oneway(address, 15, {"n": number})
            assert (await client.request(address, 10)).opaque == 10
            assert [r.is_oneway for _, r in handler.requests] == [True] * 10 + [False]

    run(main, fast_loop=fast_loop)


def test_requests_of_the_server_reach_the_client(fast_loop):
    async def main():
        handler = ScriptedHandler(echo)
        asked = []

        def on_request(connection, command):
            asked.append((connection.address, command.code))
            if command.code == 1:
                raise ValueError("a bug")
            if not command.is_oneway:
                connection.reply(command, 0, {"a": "b"}, body=b"body")

        async with serving(handler) as (server, address), client_of(on_request) as client:
            await client.connect(address)
            await until(lambda: server.connections)
            [connection] = server.connections
            connection.send_oneway(40)
            response = await connection.request(307)
            assert (response.ext, response.body) == ({"a": "b"}, b"body")
            assert (await connection.request(1)).code == 1
            assert asked == [(address, 40), (address, 307), (address, 1)]

    run(main, fast_loop=fast_loop)


def test_a_client_that_takes_no_requests_says_so():
    async def main():
        async with serving(ScriptedHandler(echo)) as (server, address), client_of() as client:
            await client.connect(address)
            await until(lambda: server.connections)
            response = await server.connections[0].request(307)
            assert (response.code, response.remark) == (3, " request type 307 not supported")
            server.connections[0].send_oneway(307)

    run(main)


def test_requests_under_way_are_limited(fast_loop):
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (_, address), client_of(inflight_max=2) as client:
            waiters = [
                asyncio.ensure_future(client.request(address, 10, None, b"%d" % n, 20))
                for n in range(6)
            ]
            await until(lambda: len(handler.requests) == 2)
            with pytest.raises(FlowControlError) as caught:
                await client.request(address, 10, timeout_s=0.02)
            assert caught.value.definite
            waiters[3].cancel()
            for number in range(5):
                await until(lambda number=number: len(handler.requests) > number)
                assert client.connections[0]._inflight <= 2
                echo(*handler.requests[number])
            results = await asyncio.gather(*waiters, return_exceptions=True)
            assert [r.body for n, r in enumerate(results) if n != 3] == [
                b"0", b"1", b"2", b"4", b"5",
            ]  # fmt: skip
            assert client.connections[0]._inflight == 0

    run(main, fast_loop=fast_loop)


def test_those_who_wait_for_their_turn_hear_of_a_loss():
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (_, address), client_of(inflight_max=1) as client:
            waiters = [asyncio.ensure_future(client.request(address, 10)) for _ in range(3)]
            await until(lambda: handler.requests)
            handler.requests[0][0]._transport.abort()
            results = await asyncio.gather(*waiters, return_exceptions=True)
            assert [type(r) for r in results] == [
                ConnectionLostError,
                ConnectFailedError,
                ConnectFailedError,
            ]

    run(main)


def test_large_bodies_in_both_directions_do_not_block_each_other(fast_loop):
    """Both ends stop reading only when the other one can still go on."""

    async def main():
        handler = ScriptedHandler(echo)
        config = {"write_high_water_bytes": 100_000}
        async with (
            serving(handler, **config) as (_, address),
            client_of(**config, request_timeout_s=25) as client,
        ):
            body = bytes(1_000_000)
            answers = await asyncio.gather(
                *(client.request(address, 10, None, [body, b"%d" % n]) for n in range(100))
            )
            assert [a.body[1_000_000:] for a in answers] == [b"%d" % n for n in range(100)]

    run(main, fast_loop=fast_loop)


def test_oneway_requests_wait_for_a_slow_server(fast_loop):
    async def main():
        config = {"write_high_water_bytes": 100_000, "request_timeout_s": 0.1}
        with socket.create_server(("127.0.0.1", 0)) as silent:  # which never accepts
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            async with client_of(**config) as client:
                with pytest.raises(FlowControlError):
                    for _ in range(1000):
                        await client.send_oneway(address, 10, None, bytes(100_000))
                assert client.connections[0].write_buffered_bytes < 300_000

    run(main, fast_loop=fast_loop)


def test_what_cannot_be_sent_is_our_error():
    async def main():
        async with serving(ScriptedHandler(echo)) as (_, address), client_of() as client:
            with pytest.raises(LocalProtocolError):
                await client.request(address, 10, None, bytes(17_000_000))
            with pytest.raises(LocalProtocolError):
                await client.request(address, 10, {"a": "\ud800"})
            assert (await client.request(address, 10)).code == 0
            assert client.connections[0]._inflight == 0

    run(main)


def test_garbage_from_a_server(fast_loop, caplog):
    async def main():
        async def garbage(reader, writer):
            await reader.read(10)
            writer.write(struct.pack(">I", 0x7FFFFFFF))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(garbage, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client_of(request_timeout_s=20) as client:
            with pytest.raises(ConnectionLostError):
                await client.request(address, 10)
        server.close()

    run(main, fast_loop=fast_loop)
    [warning] = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]
    assert "malformed frame" in warning.getMessage()


def test_close(fast_loop):
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (_, address):
            client = RemotingClient(ClientConfig(request_timeout_s=20))
            waiting = asyncio.ensure_future(client.request(address, 10))
            await until(lambda: handler.requests)
            await client.send_oneway(address, 15)
            await client.close()
            with pytest.raises(ConnectionLostError):
                await waiting
            with pytest.raises(ClientClosedError) as caught:
                await client.request(address, 10)
            assert caught.value.definite
            await until(lambda: handler.lost)
            assert [r.code for _, r in handler.requests] == [10, 15]  # nothing accepted was dropped
            await client.close()

    run(main, fast_loop=fast_loop)


def test_cancelled_requests_leave_nothing_behind():
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (_, address), client_of() as client:
            waiting = asyncio.ensure_future(client.request(address, 10))
            await until(lambda: handler.requests)
            waiting.cancel()
            await asyncio.wait({waiting})
            [connection] = client.connections
            assert connection._waiters == {}
            assert connection._inflight == 0

    run(main)


def test_bad_limits_are_refused():
    with pytest.raises(ConfigError, match="inflight_max"):
        ClientConfig(inflight_max=0)


def test_asking_calls_back_with_the_response_or_the_error(fast_loop):
    async def main():
        handler = ScriptedHandler(lambda c, r: echo(c, r) if r.code == 10 else None)
        async with serving(handler) as (_, address), client_of() as client:
            assert client.ready(address) is None  # not connected yet
            await client.connect(address)
            connection = client.ready(address)
            ended = []

            def note(*what):
                ended.append(what)

            connection.ask(10, None, b"x", note)
            await until(lambda: ended)
            [(response, error)] = ended
            assert (response.body, error) == (b"x", None)
            cancelled = connection.ask(1, None, b"", note)
            lost = connection.ask(1, None, b"", note)
            assert connection._inflight == 2
            cancelled.cancel()
            assert cancelled.done()
            assert connection._inflight == 1
            with pytest.raises(LocalProtocolError):
                connection.ask(10, None, bytes(17 * 1024 * 1024), note)
            assert connection._inflight == 1
            await until(lambda: len(handler.requests) == 3)
            handler.requests[-1][0]._transport.abort()
            await until(lambda: lost.done())
            assert len(ended) == 2
            assert type(ended[1][1]) is ConnectionLostError
            assert connection._inflight == 0
            assert connection._waiters == {}
            assert client.ready(address) is None

    run(main, fast_loop=fast_loop)


def test_nobody_is_ready_who_has_no_room(fast_loop):
    async def main():
        handler = ScriptedHandler()
        async with serving(handler) as (_, address), client_of(inflight_max=2) as client:
            connection = await client.connect(address)
            asked = [connection.ask(1, None, b"", lambda *_: None) for _ in range(2)]
            assert client.ready(address) is None
            waiting = asyncio.ensure_future(client.request(address, 1))
            await asyncio.sleep(0)
            asked[0].cancel()  # its room goes to the one that waits
            await until(lambda: len(handler.requests) == 3)
            assert client.ready(address) is None
            waiting.cancel()

    run(main, fast_loop=fast_loop)
