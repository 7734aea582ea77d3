"""A nameserver in memory, on a real socket, and its fake broker groups."""

from __future__ import annotations

from dledger.codes import (
    AUTO_CREATE_TOPIC,
    RequestCode,
    ResponseCode,
)
from dledger.model import TopicConfig
from dledger.remoting.bodies import (
    BrokerData,
    ClusterInfo,
    QueueData,
    TopicRouteData,
    encode_cluster_info,
    encode_topic_list,
    encode_topic_route,
)
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection, RemotingServer
from tests.support.fake_broker import HOST, FakeGroup


class FakeCluster:
    """A nameserver and broker groups. `async with FakeCluster() as cluster`."""

    def __init__(
        self,
        *,
        replica_count: int = 3,
        group_names: tuple[str, ...] = ("broker-a",),
        auto_create: bool = True,
        recognises: bool = False,
    ) -> None:
        self.now_ms = 1_700_000_000_000
        self.groups = {
            name: FakeGroup(name, replica_count, lambda: self.now_ms) for name in group_names
        }
        for group in self.groups.values():
            group.recognises = recognises
        self.auto_create = auto_create
        self.stale_leader: dict[str, str] = {}  # what the nameserver believes, if not the truth
        self.nameserver_requests: list[int] = []
        self._nameserver: RemotingServer | None = None
        self._port = 0

    @property
    def group(self) -> FakeGroup:
        return next(iter(self.groups.values()))

    @property
    def nameserver(self) -> str:
        return f"{HOST}:{self._port}"

    async def __aenter__(self) -> FakeCluster:
        await self.start_nameserver()
        for group in self.groups.values():
            for replica in group.replicas:
                await replica.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for group in self.groups.values():
            for replica in group.replicas:
                await replica.kill()
        await self.stop_nameserver()

    async def start_nameserver(self) -> None:
        self._nameserver = RemotingServer(self)
        await self._nameserver.start(HOST, self._port)
        self._port = self._nameserver.port

    async def stop_nameserver(self) -> None:
        if self._nameserver is not None:
            await self._nameserver.stop(0.0)
            self._nameserver = None

    def create_topic(self, name: str, queues: int = 4) -> None:
        for group in self.groups.values():
            group.create_topic(name, queues)

    # --- the nameserver's side ----------------------------------------------------------------

    def connection_lost(self, connection: Connection) -> None:
        pass

    def handle(self, connection: Connection, command: Command) -> None:
        code = RequestCode(command.code)
        self.nameserver_requests.append(code)
        match code:
            case RequestCode.GET_ROUTEINFO_BY_TOPIC:
                self._route(connection, command)
            case RequestCode.GET_BROKER_CLUSTER_INFO:
                brokers = {name: self._broker_data(group) for name, group in self.groups.items()}
                info = ClusterInfo(brokers=brokers, clusters={"DefaultCluster": list(brokers)})
                connection.reply(command, 0, None, None, encode_cluster_info(info))
            case RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER:
                names = sorted({name for group in self.groups.values() for name in group.topics})
                connection.reply(command, 0, None, None, encode_topic_list(names))
            case RequestCode.DELETE_TOPIC_IN_NAMESRV:
                connection.reply(command)
            case _:
                connection.reply(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)

    def _broker_data(self, group: FakeGroup) -> BrokerData:
        addresses: dict[int, str] = {}
        for replica in group.replicas:
            if replica.server is None:
                continue
            addresses[replica.number + 1] = replica.address
            if group.leader == replica.number:
                addresses[0] = addresses.pop(replica.number + 1)
        if group.name in self.stale_leader:
            addresses[0] = self.stale_leader[group.name]
        return BrokerData(cluster="DefaultCluster", broker_name=group.name, addresses=addresses)

    def _route(self, connection: Connection, command: Command) -> None:
        topic = command.ext["topic"]
        queue_datas = []
        for group in self.groups.values():
            config = group.topics.get(topic)
            if config is None and topic == AUTO_CREATE_TOPIC and self.auto_create:
                config = TopicConfig(
                    name=topic, read_queue_count=8, write_queue_count=8, permission=7
                )
            if config is not None:
                queue_datas.append(
                    QueueData(
                        broker_name=group.name,
                        read_queue_count=config.read_queue_count,
                        write_queue_count=config.write_queue_count,
                        permission=config.permission,
                    )
                )
        if not queue_datas:
            connection.reply(command, ResponseCode.TOPIC_NOT_EXIST, None, "no route")
            return
        names = {data.broker_name for data in queue_datas}
        route = TopicRouteData(
            broker_datas=[self._broker_data(self.groups[name]) for name in sorted(names)],
            queue_datas=queue_datas,
        )
        connection.reply(command, 0, None, None, encode_topic_route(route))
