"""Forwarding to a leader that is scripted: what is tried again, and what is said to be unknown."""

import asyncio
import contextlib

from broker.context import Counters
from broker.forwarding import Forwarder, ForwarderLimits
from broker.tasks import Tasks
from dledger.codes import RequestCode, ResponseCode
from dledger.remoting.client import RemotingClient
from dledger.remoting.server import RemotingServer
from tests.support.brokers import TestClient, eventually, free_ports


class View:
    """Who leads, as told by the test."""

    is_serving = False
    term = 3

    def __init__(self, leader_id):
        self.leader_id = leader_id


class Leader:
    """Answers as scripted; records what it was asked."""

    def __init__(self, script):
        self.script = list(script)
        self.seen = []

    def handle(self, connection, command):
        self.seen.append((command.code, dict(command.ext), command.body))
        self.last = (connection, command)
        action = self.script.pop(0) if self.script else "ok"
        if action == "ok":
            connection.reply(command, 0, {"answer": "1"}, "fine", b"body")
        elif action == "stale":
            ext = {"dlOutcome": "refused", "dlTerm": "2"}
            connection.reply(command, ResponseCode.SERVICE_NOT_AVAILABLE, ext, "not me")
        elif action == "full":
            ext = {"dlOutcome": "refused"}
            connection.reply(command, ResponseCode.SERVICE_NOT_AVAILABLE, ext, "disk full")
        elif action == "drop":
            connection.close("dropped by the script")

    def answer_last(self):
        connection, command = self.last
        connection.reply(command, 0, {"answer": "1"}, "fine", b"body")

    def connection_lost(self, connection):
        pass


class Follower:
    def __init__(self):
        self.forwarder = None
        self.here = []

    def handle(self, connection, command):
        try:
            self.forwarder.forward(connection, command)
        except Exception as error:
            connection.reply_error(command, error)

    def handle_here(self, connection, command):
        self.here.append(command.code)
        connection.reply(command, 0, {"here": "1"})

    def connection_lost(self, connection):
        pass


@contextlib.asynccontextmanager
async def forwarding(script=(), leader_id="leader", leader_runs=True, **limits):
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    leader = Leader(script)
    leader_server = RemotingServer(leader)
    if leader_runs:
        await leader_server.start("127.0.0.1", port)
    follower = Follower()
    server = RemotingServer(follower)
    await server.start("127.0.0.1", 0)
    view, counters, fatal = View(leader_id), Counters(), []
    tasks, remote = Tasks(fatal.append), RemotingClient()
    settings = {"wait_s": 0.4, "timeout_s": 0.4, "count_max": 10, "bytes_max": 1000, **limits}
    follower.forwarder = Forwarder(
        view,
        remote,
        tasks,
        replica_id="self",
        address_of={"leader": address, "self": "127.0.0.1:1"}.get,
        handle_here=follower.handle_here,
        counters=counters,
        limits=ForwarderLimits(**settings),
    )
    client = TestClient(f"127.0.0.1:{server.port}")
    try:
        yield client, leader, follower, view
        assert fatal == []
    finally:
        await client.close()
        await server.stop(0)
        await tasks.close()
        await remote.close()
        if leader_runs:
            await leader_server.stop(0)


CODE = RequestCode.QUERY_CONSUMER_OFFSET


def test_requests_and_answers_pass_unchanged():
    async def run():
        async with forwarding() as (client, leader, _follower, _view):
            answer = await client.call(CODE, {"topic": "t"}, b"asked")
            assert (answer.code, answer.remark, answer.body) == (0, "fine", b"body")
            assert answer.ext["answer"] == "1"
            ((code, ext, body),) = leader.seen
            assert (code, body) == (CODE, b"asked")
            assert ext == {"topic": "t", "dlForwarded": "1"}

    asyncio.run(run())


def test_oneway_requests_pass_and_are_not_answered():
    async def run():
        async with forwarding() as (client, leader, _follower, _view):
            await client.remoting.send_oneway(client.address, CODE, {"topic": "t"})
            await eventually(lambda: leader.seen, "the leader got it")

    asyncio.run(run())


def test_a_leader_that_no_longer_leads_is_asked_again():
    async def run():
        async with forwarding(["stale", "stale"]) as (client, leader, _follower, _view):
            assert (await client.call(CODE)).code == 0
            assert len(leader.seen) == 3

    asyncio.run(run())


def test_a_refusal_of_the_leader_is_passed_on():
    async def run():
        async with forwarding(["full"]) as (client, leader, _follower, _view):
            answer = await client.call(CODE)
            assert (answer.code, answer.remark) == (14, "disk full")
            assert len(leader.seen) == 1

    asyncio.run(run())


def test_a_lost_answer_is_unknown_and_never_tried_again():
    async def run():
        for action in ("drop", "silence"):
            async with forwarding([action]) as (client, leader, _follower, _view):
                answer = await client.call(CODE)
                assert answer.code == ResponseCode.SYSTEM_ERROR
                assert answer.ext["dlOutcome"] == "unknown"
                assert len(leader.seen) == 1

    asyncio.run(run())


def test_a_silent_leader_is_left_when_another_one_leads():
    """A stopped process never answers; the client must not wait until the time is up."""

    async def run():
        async with forwarding(["silence"], timeout_s=20.0) as (client, leader, follower, view):
            asking = asyncio.ensure_future(client.call(CODE, timeout_s=20))
            await eventually(lambda: leader.seen, "the leader was asked")
            view.leader_id = "self"
            follower.forwarder.on_leader_changed("self", 4)
            answer = await asyncio.wait_for(asking, 3)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert answer.ext["dlOutcome"] == "unknown"

    asyncio.run(run())


def test_a_late_answer_of_the_leader_before_still_counts():
    async def run():
        async with forwarding(["silence"], timeout_s=20.0) as (client, leader, follower, view):
            asking = asyncio.ensure_future(client.call(CODE, timeout_s=20))
            await eventually(lambda: leader.seen, "the leader was asked")
            view.leader_id = "self"
            follower.forwarder.on_leader_changed("self", 4)
            leader.answer_last()
            assert (await asyncio.wait_for(asking, 3)).code == 0

    asyncio.run(run())


def test_without_a_leader_the_refusal_is_definite():
    async def run():
        for options in ({"leader_id": None}, {"leader_runs": False}, {"leader_id": "self"}):
            async with forwarding(**options) as (client, _leader, _follower, _view):
                answer = await client.call(CODE)
                assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
                assert answer.ext["dlOutcome"] == "refused"
                assert answer.ext["dlTerm"] == "3"

    asyncio.run(run())


def test_a_leader_found_in_time_gets_the_request():
    async def run():
        async with forwarding(leader_id=None, wait_s=5.0) as (client, leader, follower, view):
            asked = asyncio.create_task(client.call(CODE))
            await eventually(lambda: follower.forwarder._count == 1, "the request is held")
            view.leader_id = "leader"
            follower.forwarder.on_leader_changed("leader", 4)
            assert (await asked).code == 0
            assert len(leader.seen) == 1

    asyncio.run(run())


def test_a_replica_that_becomes_leader_answers_itself():
    async def run():
        async with forwarding(leader_id=None, wait_s=5.0) as (client, _leader, follower, view):
            asked = asyncio.create_task(client.call(CODE))
            await eventually(lambda: follower.forwarder._count == 1, "the request is held")
            view.is_serving = True
            follower.forwarder.on_serving(4)
            assert (await asked).ext == {"here": "1"}
            assert follower.here == [CODE]
            assert follower.forwarder._count == 0

    asyncio.run(run())


def test_one_hop_only_and_our_own_client_is_told_the_address():
    async def run():
        async with forwarding() as (client, leader, _follower, _view):
            for name in ("dlForwarded", "dlNoForward"):
                answer = await client.call(CODE, {name: "1"})
                assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
                assert answer.ext["dlOutcome"] == "refused"
                assert answer.ext["dlLeader"].startswith("127.0.0.1:")
            assert leader.seen == []

    asyncio.run(run())


def test_what_is_held_is_bounded():
    async def run():
        async with forwarding(leader_id=None, count_max=2, bytes_max=10) as (
            client,
            _leader,
            follower,
            _view,
        ):
            large = await client.call(CODE, None, bytes(11))
            assert (large.code, "forward_bytes_max" in large.remark) == (2, True)
            held = [asyncio.create_task(client.call(CODE)) for _ in range(2)]
            await eventually(lambda: follower.forwarder._count == 2, "two are held")
            third = await client.call(CODE)
            assert (third.code, "forwards_max" in third.remark) == (2, True)
            assert third.ext["dlOutcome"] == "refused"
            assert {answer.code for answer in await asyncio.gather(*held)} == {14}

    asyncio.run(run())
