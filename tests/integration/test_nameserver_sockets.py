"""The nameserver over real sockets: what brokers, clients and admin tools send and get."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dledger.codes import RequestCode, ResponseCode
from dledger.errors import ConfigError
from dledger.model import TopicConfig
from dledger.remoting.bodies import (
    DataVersion,
    QueueData,
    RegisterBrokerBody,
    TopicRouteData,
    decode_topic_route,
    encode_data_version,
    encode_register_broker,
    encode_topic_route,
)
from dledger.remoting.client import RemotingClient
from dledger.remoting.commands import Command
from nameserver.server import NameserverConfig, NameserverServer


class Peer:
    """A broker or client: one connection to the nameserver."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.client = RemotingClient()

    async def ask(self, code: int, ext: dict[str, Any] | None = None, body: bytes = b"") -> Command:
        return await self.client.request(self.address, code, ext, body, timeout_s=5)

    async def register(
        self,
        broker_id: int,
        address: str,
        term: int,
        topics: tuple[str, ...] = (),
        *,
        name: str = "broker-a",
        **more: Any,
    ) -> Command:
        table = {topic: TopicConfig(name=topic) for topic in topics}
        body = encode_register_broker(
            RegisterBrokerBody(topics=table, data_version=DataVersion(counter=term))
        )
        body = more.pop("body", body)
        ext = {
            "brokerName": name,
            "brokerAddr": address,
            "clusterName": "C",
            "haServerAddr": "h:1",
            "brokerId": broker_id,
            "dlTerm": term,
            "bodyCrc32": zlib.crc32(body) & 0x7FFFFFFF,
            **more,
        }
        return await self.ask(RequestCode.REGISTER_BROKER, ext, body)

    async def route(self, topic: str) -> dict[str, Any] | None:
        answer = await self.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
        if answer.code == ResponseCode.TOPIC_NOT_EXIST:
            return None
        assert answer.code == 0, answer.remark
        content: dict[str, Any] = json.loads(answer.body)  # strict JSON: only quoted keys pass
        return content

    async def addresses(self, topic: str) -> dict[str, str] | None:
        route = await self.route(topic)
        return route["brokerDatas"][0]["brokerAddrs"] if route else None


@asynccontextmanager
async def nameserver(
    peers: int = 1, **settings: Any
) -> AsyncIterator[tuple[NameserverServer, list[Peer]]]:
    server = NameserverServer(NameserverConfig(port=0, **settings))
    await server.start()
    made = [Peer(server.port) for _ in range(peers)]
    try:
        yield server, made
    finally:
        for peer in made:
            await peer.client.close()
        await server.stop()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


def test_route_of_a_registered_group() -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            answer = await peer.register(0, "h:10", 3, ("T", "TBW102"))
            assert answer.code == 0
            follower = await peer.register(2, "h:20", 3)
            assert follower.ext["masterAddr"] == "h:10"
            assert follower.ext["haServerAddr"] == "h:1"
            route = await peer.route("T")
            assert route is not None
            assert route["brokerDatas"] == [
                {
                    "cluster": "C",
                    "brokerName": "broker-a",
                    "brokerAddrs": {"0": "h:10", "2": "h:20"},
                    "enableActingMaster": False,
                }
            ]
            [queues] = route["queueDatas"]
            assert queues["brokerName"] == "broker-a"
            assert (queues["readQueueNums"], queues["writeQueueNums"]) == (4, 4)
            assert (queues["perm"], queues["topicSysFlag"], queues["topicSynFlag"]) == (6, 0, 0)
            assert route["filterServerTable"] == {}
            missing = await peer.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "nope"})
            assert missing.code == ResponseCode.TOPIC_NOT_EXIST
            assert "nope" in (missing.remark or "")

    asyncio.run(scenario())


def test_higher_term_wins_and_the_loser_is_told() -> None:
    async def scenario() -> None:
        async with nameserver(2) as (_, [old, new]):
            await old.register(0, "h:10", 3, ("T",))
            await new.register(0, "h:20", 4, ("T",))
            stale = await old.register(0, "h:10", 3, ("T",))
            assert stale.code == ResponseCode.SYSTEM_ERROR
            assert "term 3 refused" in (stale.remark or "")
            assert await new.addresses("T") == {"0": "h:20"}
            await old.register(1, "h:10", 4)
            assert await new.addresses("T") == {"0": "h:20", "1": "h:10"}

    asyncio.run(scenario())


def test_lost_connection_removes_the_leader_at_once_and_keeps_the_topic() -> None:
    async def scenario() -> None:
        async with nameserver(3) as (_, [leader, follower, client]):
            await leader.register(0, "h:10", 3, ("T",))
            await follower.register(2, "h:20", 3)
            await leader.client.close()

            async def leader_gone() -> bool:
                return await client.addresses("T") == {"2": "h:20"}

            await until(leader_gone)
            await follower.client.close()

            async def topic_gone() -> bool:
                return await client.route("T") is None

            await until(topic_gone)

    asyncio.run(scenario())


def test_lost_connection_spares_a_broker_that_came_back_on_another() -> None:
    async def scenario() -> None:
        async with nameserver(2) as (server, [first, second]):
            await first.register(0, "h:10", 3, ("T",))
            await second.register(0, "h:10", 3, ("T",))
            await first.client.close()

            async def one_connection() -> bool:
                return len(server.connections) == 1

            await until(one_connection)
            assert await second.addresses("T") == {"0": "h:10"}

    asyncio.run(scenario())


def test_silent_broker_expires() -> None:
    async def scenario() -> None:
        async with nameserver(2, expiry_seconds=1) as (_, [broker, client]):
            await broker.register(0, "h:10", 3, ("T",))

            async def gone() -> bool:
                return await client.route("T") is None

            await until(gone)
            beat = {"clusterName": "C", "brokerAddr": "h:10", "brokerName": "broker-a"}
            assert (await broker.ask(RequestCode.BROKER_HEARTBEAT, beat)).code == 0
            assert await client.route("T") is None

    asyncio.run(scenario())


def test_compressed_registration() -> None:
    """The layout of RocketMQ's compressed form, of a sender below 5.0."""
    version = b'{"counter":7,"stateVersion":0,"timestamp":1700000000000}'
    line = b"T 8 2 6 SINGLE_TAG {}"
    plain = b"".join(
        [
            struct.pack(">i", len(version)) + version,
            struct.pack(">i", 1),
            struct.pack(">i", len(line)) + line,
            struct.pack(">i", 2) + b"[]",
        ]
    )

    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            answer = await peer.register(0, "h:10", 1, body=zlib.compress(plain), compressed="true")
            assert answer.code == 0, answer.remark
            route = await peer.route("T")
            assert route is not None
            assert route["queueDatas"][0]["readQueueNums"] == 8
            assert route["queueDatas"][0]["writeQueueNums"] == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "bad",
    [
        {"brokerAddr": "no-port"},
        {"brokerAddr": ""},
        {"brokerName": ""},
        {"brokerName": "a\nb"},
        {"clusterName": ""},
        {"brokerId": -1},
        {"brokerId": "x"},
        {"dlTerm": -1},
        {"bodyCrc32": 1},
        {"body": b"not json"},
        {"body": b"{}", "compressed": "true"},
    ],
)
def test_bad_registrations_change_nothing(bad: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            answer = await peer.register(0, "h:10", 1, ("T",), **bad)
            assert answer.code != 0
            assert answer.remark
            info = json.loads((await peer.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
            assert info == {"brokerAddrTable": {}, "clusterAddrTable": {}}

    asyncio.run(scenario())


def test_lists_and_cluster_info() -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            await peer.register(0, "h:10", 1, ("B", "A"))
            await peer.register(0, "h:11", 1, ("A", "C"), name="broker-b")

            async def listed(code: int, **ext: str) -> list[str]:
                topics: list[str] = json.loads((await peer.ask(code, ext)).body)["topicList"]
                return topics

            assert await listed(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER) == ["A", "B", "C"]
            assert await listed(RequestCode.GET_TOPICS_BY_CLUSTER, cluster="C") == ["A", "B", "C"]
            assert await listed(RequestCode.GET_TOPICS_BY_CLUSTER, cluster="X") == []
            system = json.loads(
                (await peer.ask(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NAMESERVER)).body
            )
            assert system == {"topicList": ["C", "broker-a", "broker-b"], "brokerAddr": "h:10"}
            info = json.loads((await peer.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
            assert info["clusterAddrTable"] == {"C": ["broker-a", "broker-b"]}
            assert info["brokerAddrTable"]["broker-b"]["brokerAddrs"] == {"0": "h:11"}
            ask = {"clusterName": "C", "brokerName": "broker-a"}
            member = json.loads((await peer.ask(RequestCode.GET_BROKER_MEMBER_GROUP, ask)).body)
            assert member["brokerMemberGroup"]["brokerAddrs"] == {"0": "h:10"}
            ask["brokerName"] = "nobody"
            member = json.loads((await peer.ask(RequestCode.GET_BROKER_MEMBER_GROUP, ask)).body)
            assert member["brokerMemberGroup"]["brokerAddrs"] == {}

    asyncio.run(scenario())


def test_write_permission_topic_deletion_and_topic_registration() -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            await peer.register(0, "h:10", 1, ("A", "B"))
            name = {"brokerName": "broker-a"}
            wiped = await peer.ask(RequestCode.WIPE_WRITE_PERM_OF_BROKER, name)
            assert wiped.ext["wipeTopicCount"] == "2"
            assert (await peer.route("A") or {})["queueDatas"][0]["perm"] == 4
            added = await peer.ask(RequestCode.ADD_WRITE_PERM_OF_BROKER, name)
            assert added.ext["addTopicCount"] == "2"
            assert (await peer.route("A") or {})["queueDatas"][0]["perm"] == 6
            await peer.ask(RequestCode.DELETE_TOPIC_IN_NAMESRV, {"topic": "A"})
            await peer.register(0, "h:10", 1, ("A", "B"))
            assert await peer.route("A") is None
            queues = TopicRouteData(queue_datas=[QueueData(broker_name="broker-a")])
            await peer.ask(
                RequestCode.REGISTER_TOPIC_IN_NAMESRV, {"topic": "N"}, encode_topic_route(queues)
            )
            assert await peer.addresses("N") == {"0": "h:10"}
            gone = {"brokerAddr": "h:10", "brokerId": 0, "clusterName": "C", **name}
            assert (await peer.ask(RequestCode.UNREGISTER_BROKER, gone)).code == 0
            assert await peer.route("B") is None

    asyncio.run(scenario())


def test_a_wiped_write_permission_survives_a_restart_of_the_nameserver(tmp_path: Path) -> None:
    async def permission_after(code: RequestCode | None) -> int:
        async with nameserver(data_directory=tmp_path / "ns") as (_, [peer]):
            await peer.register(0, "h:10", 1, ("A",))
            if code is not None:
                assert (await peer.ask(code, {"brokerName": "broker-a"})).code == 0
            return int((await peer.route("A") or {})["queueDatas"][0]["perm"])

    async def scenario() -> None:
        assert await permission_after(RequestCode.WIPE_WRITE_PERM_OF_BROKER) == 4
        assert await permission_after(None) == 4
        assert await permission_after(RequestCode.ADD_WRITE_PERM_OF_BROKER) == 6
        assert await permission_after(None) == 6

    asyncio.run(scenario())


def test_data_version() -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            ask = {"brokerName": "broker-a", "brokerAddr": "h:10", "clusterName": "C"}
            body = encode_data_version(DataVersion(counter=1))
            unknown = await peer.ask(RequestCode.QUERY_DATA_VERSION, ask, body)
            assert (unknown.ext["changed"], unknown.body) == ("true", b"")
            await peer.register(0, "h:10", 1)
            same = await peer.ask(RequestCode.QUERY_DATA_VERSION, ask, body)
            assert same.ext["changed"] == "false"
            assert json.loads(same.body)["counter"] == 1
            other = encode_data_version(DataVersion(counter=2))
            changed = await peer.ask(RequestCode.QUERY_DATA_VERSION, ask, other)
            assert changed.ext["changed"] == "true"

    asyncio.run(scenario())


def test_key_values_survive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        entry = {"namespace": "ORDER_TOPIC_CONFIG", "key": "T"}
        async with nameserver(data_directory=tmp_path / "ns") as (_, [peer]):
            assert (await peer.ask(RequestCode.GET_KV_CONFIG, entry)).code == 22
            put = {**entry, "value": "broker-a:4"}
            assert (await peer.ask(RequestCode.PUT_KV_CONFIG, put)).code == 0
        async with nameserver(data_directory=tmp_path / "ns") as (_, [peer]):
            got = await peer.ask(RequestCode.GET_KV_CONFIG, entry)
            assert got.ext["value"] == "broker-a:4"
            listed = await peer.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, entry)
            assert json.loads(listed.body) == {"table": {"T": "broker-a:4"}}
            registered = await peer.register(0, "h:10", 1, ("T",))
            assert json.loads(registered.body) == {"table": {"T": "broker-a:4"}}
            answer = await peer.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})
            assert decode_topic_route(answer.body).order_topic_conf == "broker-a:4"
            assert (await peer.ask(RequestCode.DELETE_KV_CONFIG, entry)).code == 0
            assert (await peer.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, entry)).code == 22
            empty = {"namespace": "", "key": "k", "value": "v"}
            assert (await peer.ask(RequestCode.PUT_KV_CONFIG, empty)).code == 29
        (tmp_path / "ns" / "key-values.json").write_text('{"a": 1}')
        with pytest.raises(ConfigError, match="table of texts"):
            NameserverServer(NameserverConfig(port=0, data_directory=tmp_path / "ns"))

    asyncio.run(scenario())


def test_settings_and_unknown_codes() -> None:
    async def scenario() -> None:
        async with nameserver() as (_, [peer]):
            settings = await peer.ask(RequestCode.GET_NAMESERVER_CONFIG)
            assert b"brokerExpirySeconds=120\n" in settings.body
            update = await peer.ask(RequestCode.UPDATE_NAMESERVER_CONFIG, body=b"a=b")
            assert update.code == ResponseCode.NO_PERMISSION
            unknown = await peer.ask(9999)
            assert unknown.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            assert unknown.remark == " request type 9999 not supported"
            missing = await peer.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC)
            assert missing.code == ResponseCode.INVALID_PARAMETER

    asyncio.run(scenario())


def test_garbage_closes_only_its_own_connection() -> None:
    async def scenario() -> None:
        async with nameserver() as (server, [peer]):
            await peer.register(0, "h:10", 1, ("T",))
            for garbage in (b"\x7f\xff\xff\xff" + b"x" * 100, b"GET / HTTP/1.1\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(garbage)
                async with asyncio.timeout(5):
                    assert await reader.read() == b""
                writer.close()
            assert await peer.addresses("T") == {"0": "h:10"}

    asyncio.run(scenario())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "nameserver", *arguments]


def test_process_starts_answers_and_stops_cleanly(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        command("--listen", f"127.0.0.1:{port}", "--data", str(tmp_path / "ns")),
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    ) as process:

        async def answers() -> bool:
            try:
                return (await peer.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).code == 0
            except Exception:
                return False

        async def scenario() -> None:
            await until(answers, 20)
            await peer.client.close()

        peer = Peer(port)
        try:
            asyncio.run(scenario())
            second = subprocess.run(
                command("--listen", f"127.0.0.1:{port}"),
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                timeout=20,
                check=False,
            )
            assert second.returncode == 1
            [line] = second.stderr.decode().splitlines()
            assert "already in use" in line
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "arguments", [["--listen", "x"], ["--listen", "h:99999"], ["--expiry-seconds", "0"]]
)
def test_process_refuses_bad_arguments(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from nameserver.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capfd.readouterr().err
