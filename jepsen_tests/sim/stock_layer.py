"""pysyncobj as it comes, as a positive control: it must be found guilty (K4).

Its own are the consensus and its messages, pickled and compressed as its TCP transport does it;
its file journal; its compaction and snapshots. Simulated are the sockets under the transport (its
own talks to the operating system through a poller, which a virtual network cannot be), the files
under the journal, and the place of the newest snapshot, which is never lost here. An exception in
a tick is passed over, as its own thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, journal, replicated, serializer
from pysyncobj.pickle import dumps, loads
from pysyncobj.transport import Transport

from dledger.errors import DiskFullError, LeadershipLostError, NotLeaderError
from dledger.raft.upstream import LEADER, NullPoller, Peer, engine_clock
from jepsen_tests.sim.host import Host
from jepsen_tests.sim.raft_layer import Listener
from jepsen_tests.sim.world import World
from store.simulated_files import PowerLossError, SimulatedFileSystem

PORT = 10_912
TICK_S = 0.02
RETRY_S = 0.3
SILENCE_MS = 3_500
PIECE_BYTES = 4_096
JOURNAL = Path("/data/journal")
LENGTH = struct.Struct("<I")
INDEFINITE = (FAIL_REASON.LEADER_CHANGED, FAIL_REASON.UNKNOWN_OUTCOME)


@dataclass(frozen=True, slots=True)
class Applied:
    """A committed entry, as the oracle wants it."""

    index: int
    term: int
    body: bytes


# --- its journal on the simulated disk ----------------------------------------------------------


class _JournalFile:
    """Stands in for the library's memory-mapped file: stores that nobody ever syncs."""

    def __init__(self, files: SimulatedFileSystem, path: Path, content: bytes) -> None:
        self._files = files
        try:
            self._file = files.open(path)
        except FileNotFoundError:
            self._file = files.create(path, 1024)
            files.write(self._file, 0, [content])

    def write(self, offset: int, values: bytes) -> None:
        size = self._files.size(self._file)
        if offset + len(values) > size:
            self._files.allocate(self._file, max(2 * size, offset + len(values)))
        self._files.write(self._file, offset, [values])

    def read(self, offset: int, size: int) -> bytes:
        return self._files.read(self._file, offset, size)

    def flush(self) -> None:
        """Is called when the journal is closed; a killed process does not."""

    def _destroy(self) -> None:
        self._files.close(self._file)


class _Meta:
    """Stands in for the library's small file: written aside and renamed, not synced."""

    def __init__(self, files: SimulatedFileSystem, path: Path) -> None:
        self._files = files
        self._path = path

    def getMeta(self) -> dict[str, Any]:
        try:
            file = self._files.open(self._path)
        except FileNotFoundError:
            return {}
        data = self._files.read(file, 0, self._files.size(file))
        self._files.close(file)
        try:
            return dict(loads(data))
        except Exception:
            return {}  # as the library does

    def storeMeta(self, meta: dict[str, Any]) -> None:
        spare = self._path.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(spare)
        file = self._files.create(spare, 0)
        self._files.write(file, 0, [dumps(meta)])
        self._files.close(file)
        self._files.rename(spare, self._path)


def open_journal(files: SimulatedFileSystem) -> Any:
    """Opens the library's file journal on a simulated disk."""
    before = journal.ResizableFile, journal.MetaStorer
    journal.ResizableFile = lambda name, defaultContent: _JournalFile(
        files, Path(name), defaultContent
    )
    journal.MetaStorer = lambda name: _Meta(files, Path(name))
    try:
        return journal.FileJournal(str(JOURNAL))
    finally:
        journal.ResizableFile, journal.MetaStorer = before


class _PlainGzip:
    """Stands in for gzip, which writes the time of day into its header."""

    @staticmethod
    @contextlib.contextmanager
    def GzipFile(*, fileobj: Any, mode: str) -> Iterator[Any]:
        """Returns the file itself."""
        del mode
        yield fileobj


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Lets the library's snapshots be the same bytes in each run of a seed."""
    before, serializer.gzip = serializer.gzip, _PlainGzip
    try:
        yield
    finally:
        serializer.gzip = before


# --- its transport on the simulated network -----------------------------------------------------


class _Link(asyncio.Protocol):
    """A connection of two nodes: frames of a length and a compressed pickle, both ways."""

    def __init__(self, owner: StockTransport, peer_id: str | None) -> None:
        self._owner = owner
        self.peer_id = peer_id
        self.transport: Any = None
        self.lost = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        if self.peer_id is not None:
            self.send(self._owner.own_id)
            self._owner.connected(self.peer_id, self)

    def send(self, message: Any) -> None:
        data = zlib.compress(dumps(message), 3)
        self.transport.write(LENGTH.pack(len(data)) + data)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4 and len(buffer) >= 4 + LENGTH.unpack_from(buffer)[0]:
            end = 4 + LENGTH.unpack_from(buffer)[0]
            message = loads(zlib.decompress(bytes(buffer[4:end])))
            del buffer[:end]
            if self.peer_id is None:
                self.peer_id = message
                self._owner.connected(message, self)
            else:
                self._owner.received(self.peer_id, message)
        self._owner.tick_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer_id is not None:
            self._owner.disconnected(self.peer_id, self)
        if not self.lost.done():
            self.lost.set_result(None)


class StockTransport(Transport):  # type: ignore[misc]
    """The library's transport seam over simulated connections.

    As its own transport does, the node with the greater name dials, and an old connection of a
    peer stays open when a new one is accepted.
    """

    def __init__(self, host: Host, peers: dict[str, Peer], addresses: dict[str, str]) -> None:
        super().__init__(None, None, [])
        self.own_id = host.name
        self.tick_soon: Callable[[], None] = lambda: None
        self._host = host
        self._peers = peers
        self._addresses = addresses
        self._links: dict[str, _Link] = {}

    @property
    def ready(self) -> bool:
        """Whether it can be used."""
        return True

    def destroy(self) -> None:
        """Closes nothing: the process dies."""

    async def start(self) -> None:
        """Listens and dials."""
        loop = self._host.loop
        await loop.create_server(lambda: _Link(self, None), self._host.address, PORT)
        for peer_id in self._peers:
            if self.own_id > peer_id:
                loop.create_task(self._dial(peer_id))

    async def _dial(self, peer_id: str) -> None:
        loop = self._host.loop
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SILENCE_MS / 1000):
                    _, link = await loop.create_connection(
                        lambda: _Link(self, peer_id), self._addresses[peer_id], PORT
                    )
                await link.lost
            await asyncio.sleep(RETRY_S)

    def send(self, node: Peer, message: Any) -> bool:
        """Sends a message."""
        link = self._links.get(node.id)
        if link is None or link.transport.is_closing():
            return False
        link.send(message)
        return True

    def connected(self, peer_id: str, link: _Link) -> None:
        """Takes a connection into use."""
        self._links[peer_id] = link
        self._onNodeConnected(self._peers[peer_id])

    def disconnected(self, peer_id: str, link: _Link) -> None:
        """Forgets a connection."""
        if self._links.get(peer_id) is link:
            del self._links[peer_id]
            self._onNodeDisconnected(self._peers[peer_id])

    def received(self, peer_id: str, message: Any) -> None:
        """Hands a message over; what goes wrong there is passed over, as in the library."""
        with contextlib.suppress(Exception):
            self._onMessageReceived(self._peers[peer_id], message)


# --- its consensus ------------------------------------------------------------------------------


class StockGroup(SyncObj):  # type: ignore[misc]
    """The library's object, with a list of numbers replicated in it. Nothing is mended."""

    def __init__(self, server: StockServer, transport: StockTransport, random: Random) -> None:
        # Not part of the replicated state: set before the library's constructor.
        self._server = server
        self._random = random
        peers = server.peers
        conf = server.settings()
        super().__init__(
            Peer(server.host.name), list(peers.values()), conf, nodeClass=Peer, transport=transport
        )
        self._poller = NullPoller()
        self.values: list[int] = []

    @replicated  # type: ignore[untyped-decorator]
    def put(self, value: int, _padding: bytes) -> int:
        """Appends a number; returns its offset."""
        self.values.append(value)
        return len(self.values) - 1

    @replicated  # type: ignore[untyped-decorator]
    def mark(self) -> None:
        """Does nothing, in its turn: for reads through the log."""

    def _SyncObj__generateRaftTimeout(self) -> float:
        beat_s = self._server.world.plan.heartbeat_ms / 1000
        return self._random.uniform(4 * beat_s, 8 * beat_s)

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        index = self._SyncObj__raftLastApplied + 1
        term = self._SyncObj__getEntries(index, 1)[0][2]
        entry = Applied(index, term, bytes(command))
        self._server.world.oracle.applied(self._server.name, index - 1, [entry])
        return super()._SyncObj__doApplyCommand(command)


class StockLog:
    """What the world asks of a log."""

    def __init__(self, group: StockGroup) -> None:
        self._entries = group._SyncObj__raftLog

    @property
    def first_index(self) -> int:
        """Index of the oldest entry."""
        return int(self._entries[0][1])

    @property
    def last_index(self) -> int:
        """Index of the newest entry."""
        return int(self._entries[-1][1])

    durable_index = last_index

    def term_at(self, index: int) -> int | None:
        """Returns the term of an entry, None if it is not held."""
        position = index - self.first_index
        held = 0 <= position < len(self._entries)
        return int(self._entries[position][2]) if held else None


class StockNode:
    """What the world and the clients ask of a node."""

    def __init__(self, group: StockGroup) -> None:
        self._group = group

    @property
    def term(self) -> int:
        """The current term."""
        return int(self._group.raftCurrentTerm)

    @property
    def is_serving(self) -> bool:
        """Whether it leads and has applied its no-op."""
        group = self._group
        no_op = group._SyncObj__noopIDx
        leads = group._SyncObj__raftState == LEADER
        return bool(leads and no_op is not None and group.raftLastApplied >= no_op)

    @property
    def commit_index(self) -> int:
        """The commit index."""
        return int(self._group.raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """The applied index."""
        return int(self._group.raftLastApplied)

    async def submit(self, body: bytes) -> tuple[int, int]:
        """Replicates a number; returns its offset and the index applied."""
        value = int.from_bytes(body[1:9], "big")
        offset = await self._call(self._group.put, value, body[9:])
        return offset, self.applied_index

    async def read_barrier(self) -> None:
        """Reads go through the log."""
        await self._call(self._group.mark)

    async def transfer_leadership(self, target: str) -> None:
        """Asks a follower to take over."""
        self._group.transferLeadership(Peer(target))

    async def _call(self, method: Any, *arguments: Any) -> Any:
        if not self.is_serving:
            raise NotLeaderError(None, self.term)
        future = asyncio.get_running_loop().create_future()

        def done(result: Any, reason: int) -> None:
            if future.done():
                return
            if reason == FAIL_REASON.SUCCESS:
                future.set_result(result)
            elif reason in INDEFINITE:
                future.set_exception(LeadershipLostError("the outcome is unknown"))
            else:
                future.set_exception(NotLeaderError(None, self.term))

        method(*arguments, callback=done)
        return await future


class _Machine:
    def __init__(self, group: StockGroup) -> None:
        self.state = group


class StockServer:
    """One node's process."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.name = host.name
        self.peers = {name: Peer(name) for name in world.hosts if name != host.name}
        self.node: StockNode | None = None
        self.log: Any = None
        self.machine: _Machine | None = None
        self._group: Any = None
        self._served = 0

    def settings(self) -> SyncObjConf:
        """Returns the safest settings that the library has for our timing."""
        beat_s = self.world.plan.heartbeat_ms / 1000
        return SyncObjConf(
            autoTick=False,
            journalFile=open_journal(self.host.disk.files),
            appendEntriesPeriod=beat_s,
            raftMinTimeout=4 * beat_s,
            raftMaxTimeout=8 * beat_s,
            leaderFallbackTimeout=12 * beat_s,
            commandsWaitLeader=False,
            logCompactionBatchSize=PIECE_BYTES,
            logCompactionMinEntries=1 << 40,
            logCompactionMinTime=1 << 40,
            useFork=False,
        )

    async def run(self) -> None:
        """Opens the journal, joins, and ticks."""
        host, world = self.host, self.world
        self.name = host.process.name if host.process else host.name
        engine_clock.set(host.clock)
        addresses = {name: other.address for name, other in world.hosts.items()}
        transport = StockTransport(host, self.peers, addresses)
        random = Random(f"{world.plan.seed}/{self.name}")
        try:
            group = self._group = StockGroup(self, transport, random)
        except OSError as error:
            raise DiskFullError(str(error)) from error
        dump = getattr(host, "stock_dump", None)
        if dump is not None:
            group._SyncObj__serializer._Serializer__inMemorySerializedData = dump
            group._SyncObj__loadDumpFile(clearJournal=False)
        self.log, self.machine = StockLog(group), _Machine(group)
        wake = asyncio.Event()
        transport.tick_soon = wake.set
        await transport.start()
        self.node = StockNode(group)
        listener: Any = Listener(world, host, self.node, self.log)  # type: ignore[arg-type]
        while True:
            self._tick(group, listener)
            world.loop.call_later(TICK_S, wake.set)
            await wake.wait()
            wake.clear()

    def _tick(self, group: StockGroup, listener: Any) -> None:
        try:
            group.doTick(0)
        except PowerLossError:
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                # A store into a mapped file on a full disk kills the process.
                raise DiskFullError(str(error)) from error
        except Exception:  # noqa: S110 - the library's own thread writes a line and goes on
            pass
        dump = group._SyncObj__serializer._Serializer__inMemorySerializedData
        if dump is not None:
            self.host.stock_dump = dump  # type: ignore[attr-defined]
        node = self.node
        if node is not None and node.is_serving and node.term > self._served:
            self._served = node.term
            listener.on_serving(node.term)

    def compact(self, keep: int) -> int:
        """Asks for a snapshot at the next tick."""
        del keep
        if self._group is not None:
            self._group.forceLogCompaction()
        return 0

    def close_files(self) -> None:
        """Nothing is open outside of the simulation."""
