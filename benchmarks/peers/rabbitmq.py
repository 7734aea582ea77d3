"""RabbitMQ: a quorum queue on three nodes, through aio-pika."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika

from benchmarks.peers.peer import Done, Peer, Send, Until, closing
from benchmarks.peers.servers import Servers
from cli.cluster import free_port_base

SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one that does not change its user
PREFETCH = 1000
CONFIG = """listeners.tcp.default = 127.0.0.1:{port}
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit1@localhost
cluster_formation.classic_config.nodes.2 = rabbit2@localhost
cluster_formation.classic_config.nodes.3 = rabbit3@localhost
cluster_formation.randomized_startup_delay_range.min = 0
cluster_formation.randomized_startup_delay_range.max = 1
log.file.level = warning
disk_free_limit.absolute = 100MB
"""


class RabbitMQ(Peer):
    """Three Erlang nodes; publisher confirms; consumers acknowledge."""

    title = "RabbitMQ quorum queue"
    consensus = "Raft"
    synced = "a majority's"
    client = "aio-pika"

    def missing(self) -> str | None:
        return None if SCRIPT.exists() and shutil.which("epmd") else "no rabbitmq-server installed"

    def version(self) -> str:
        command = ["dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return text.partition("-")[0]

    def start(self, directory: Path) -> None:
        self._servers = Servers(directory)
        self._base = free_port_base(8)  # of epmd, then of clients and of the distribution by node
        self._place: dict[str, int] = {}  # queue -> number of the node that leads it
        self._killed: int | None = None
        self._kills = 0
        epmd = ["epmd", "-port", str(self._base), "-address", "127.0.0.1"]
        self._servers.start("epmd", epmd, {})
        self._servers.wait_port("epmd", self._base)
        # The first forms the cluster, the others join it.
        for numbers in ((1,), (2, 3)):
            for number in numbers:
                self._start(number)
            for number in numbers:
                self._servers.wait_port(f"rabbit{number}", self._port(number))

    def _port(self, number: int) -> int:
        return self._base + number

    def _start(self, number: int) -> None:
        directory = self._servers.directory / f"rabbit{number}"
        directory.mkdir(exist_ok=True)
        (directory / "rabbitmq.conf").write_text(CONFIG.format(port=self._port(number)))
        (directory / "plugins").write_text("[].\n")
        (self._servers.directory / ".erlang.cookie").touch(0o600)
        environment = {
            "HOME": str(self._servers.directory),  # of the cookie
            "ERL_EPMD_PORT": str(self._base),
            "RABBITMQ_ALLOW_INPUT": "1",  # the server takes the shell's place: one process
            "RABBITMQ_NODENAME": f"rabbit{number}@localhost",
            "RABBITMQ_DIST_PORT": str(self._base + 4 + number),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            # Bound schedulers of three nodes would all sit on the same few processors.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+sbt u -noinput -setcookie dledger-peers"
                " -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }
        self._servers.start(f"rabbit{number}", [str(SCRIPT)], environment)

    def stop(self) -> None:
        self._servers.stop()

    def nodes(self) -> dict[str, int]:
        return {f"rabbit{number}": self._servers.pid(f"rabbit{number}") for number in (1, 2, 3)}

    async def _connect(self, number: int) -> aio_pika.abc.AbstractConnection:
        return await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self._port(number)}/")

    async def create(self, topic: str) -> None:
        # The leader is where the queue is declared.
        self._place[topic] = number = 1 + self._kills % 3
        connection = await self._connect(number)
        async with closing(connection):
            channel = await connection.channel()
            await channel.declare_queue(topic, durable=True, arguments={"x-queue-type": "quorum"})

    @contextlib.asynccontextmanager
    async def publisher(self, topic: str, *, killing: bool = False) -> AsyncIterator[Send]:
        # A connection to a node that stays waits for the new leader instead of being made anew.
        leader = self._place[topic]
        connection = await self._connect(leader % 3 + 1 if killing else leader)
        async with closing(connection):
            channel = await connection.channel(publisher_confirms=True)
            exchange = channel.default_exchange

            async def send(body: bytes) -> None:
                message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await exchange.publish(message, routing_key=topic)

            yield send

    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        connection = await self._connect(self._place[topic])
        async with closing(connection):
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(topic)
            until = Until(count)

            async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
                until.add()
                if until.messages <= count and until.messages % each == 0:
                    await message.ack(multiple=each > 1)

            await queue.consume(take)
            return await until.done(seconds)

    async def leader(self, topic: str) -> str:
        return f"rabbit{self._place[topic]}"

    def kill(self, node: str) -> None:
        self._servers.kill(node)
        self._killed = int(node.removeprefix("rabbit"))
        self._kills += 1

    def revive(self) -> None:
        if self._killed is not None:
            self._start(self._killed)
            self._servers.wait_port(f"rabbit{self._killed}", self._port(self._killed))
            self._killed = None
