"""A listener that closes while a peer connects leaves no socket behind, at whatever turn."""

import asyncio
import gc
import random
import socket
import warnings

import pytest

from broker.metrics_server import MetricsServer
from dledger.listening import close_listener
from dledger.raft.protocols import Identity
from dledger.raft.transport import TcpTransport, TransportConfig
from dledger.remoting.server import RemotingServer
from tests.support.remoting_peers import ScriptedHandler, run

TURNS = range(8)  # accepting takes three of the loop's turns


class Bare:
    """A listener whose protocols refuse once it has been told to stop."""

    def __init__(self):
        self.is_stopped = False
        self.made = 0

    async def start(self):
        self.server = await asyncio.get_running_loop().create_server(self.protocol, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    def protocol(self):
        owner = self

        class Refusing(asyncio.Protocol):
            def connection_made(self, transport):
                owner.made += 1
                if owner.is_stopped:
                    transport.abort()
                else:
                    asyncio.get_running_loop().call_soon(transport.abort)

        return Refusing()

    async def stop(self):
        self.is_stopped = True
        await close_listener(self.server)
        self.made_when_closed = self.made


class Raft:
    async def start(self):
        config = TransportConfig(
            cluster_name="c",
            group_name="g",
            replica_id="a",
            listen_host="127.0.0.1",
            listen_port=0,
        )
        self.transport = TcpTransport(config, random.Random(1))
        self.identity = Identity("a", 0, "directory-a")
        await self.transport.start(self, {})
        return self.transport.listen_port

    async def stop(self):
        await self.transport.stop()


class Remoting:
    async def start(self):
        self.server = RemotingServer(ScriptedHandler())
        await self.server.start("127.0.0.1", 0)
        return self.server.port

    async def stop(self):
        await self.server.stop(drain_s=0.05)


class Metrics:
    async def start(self):
        self.server = MetricsServer(lambda: b"")
        await self.server.start("127.0.0.1", 0)
        return self.server.port

    async def stop(self):
        await self.server.stop()


def unclosed_after(party, turns, *, fast_loop):
    """Stops so many turns after a peer has connected; returns what the collector complained of."""

    async def main():
        port = await party.start()
        peer = socket.create_connection(("127.0.0.1", port))  # the kernel completes it at once
        peer.setblocking(False)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
            await party.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
        finally:
            peer.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main, fast_loop=fast_loop)
        gc.collect()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("fast_loop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("party", [Bare, Raft, Remoting, Metrics])
@pytest.mark.parametrize("turns", TURNS)
def test_nothing_accepted_is_left_behind(party, turns, fast_loop):
    assert unclosed_after(party(), turns, fast_loop=fast_loop) == []


def test_what_was_accepted_has_its_protocol_when_the_listener_is_closed():
    made = []
    for turns in TURNS:
        bare = Bare()
        assert unclosed_after(bare, turns, fast_loop=False) == []
        assert bare.made == bare.made_when_closed
        made.append(bare.made)
    # Too early, the kernel resets the peer; from then on each gets its `connection_made`.
    assert made == sorted(made)
    assert made[-1] == 1


def test_closing_twice_is_no_error():
    async def main():
        bare = Bare()
        await bare.start()
        await asyncio.gather(close_listener(bare.server), close_listener(bare.server))
        await close_listener(bare.server)

    run(main)
