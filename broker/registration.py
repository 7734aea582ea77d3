"""Keeps every nameserver informed about this replica.

Nameservers know nothing of each other, so each has a task of its own here. A replica registers
when its role or its topics change, when the connection to a nameserver was lost, and every few
seconds in any case. Broker id 0 is claimed only while this replica serves as leader, together with
the term: a nameserver never lets an older term replace a newer one.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Mapping, Sequence

from broker.catalog import Catalog
from broker.context import BrokerContext
from broker.shared_address import SharedAddress
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.model import TopicConfig
from dledger.remoting.bodies import DataVersion, RegisterBrokerBody, encode_register_broker
from dledger.remoting.client import RemotingClient
from dledger.remoting.nameserver_headers import RegisterBrokerHeader, UnregisterBrokerHeader

logger = logging.getLogger(__name__)

RETRY_MIN_S = 0.25
RETRY_MAX_S = 5.0
LEADER_ID = 0


class _Target:
    """One nameserver."""

    __slots__ = ("address", "is_known", "wanted")

    def __init__(self, address: str) -> None:
        self.address = address
        self.wanted = asyncio.Event()
        # None until the first attempt ended: every change is logged once.
        self.is_known: bool | None = None


class Registrar:
    """Registers this replica. Satisfies `RaftListener`."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        client: RemotingClient,
        nameservers: Sequence[str],
        shared_address: SharedAddress,
    ) -> None:
        """Prepares registering.

        Args:
            context: What there is to say about this replica.
            catalog: Topics that the system needs.
            client: Connections to nameservers.
            nameservers: Their addresses.
            shared_address: Told to nameservers while this replica listens on it.
        """
        self._context = context
        self._catalog = catalog
        self._client = client
        self._shared_address = shared_address
        shared_address.on_changed(self._register_soon)
        self._targets = [_Target(address) for address in nameservers]
        self._tasks: list[asyncio.Task[None]] = []
        self._topics_version = 0
        self._topics_changed_ms = context.boot_ms
        # The encoded topics, until they change: with thousands of topics this is most of the work.
        self._body: tuple[tuple[int, int], bytes] | None = None

    def start(self) -> None:
        """Begins to register."""
        for target in self._targets:
            name = f"register-{target.address}"
            task = self._context.tasks.spawn(self._keep_registered(target), name)
            self._tasks.append(task)

    async def stop(self, timeout_s: float) -> None:
        """Stops registering and takes leave of every nameserver, as far as they answer in time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        farewells = [self._unregister(target.address, timeout_s) for target in self._targets]
        await asyncio.gather(*farewells, return_exceptions=True)

    def topics_changed(self) -> None:
        """Registers again soon, with the new topics."""
        self._topics_version += 1
        self._topics_changed_ms = self._context.clock.wall_ms()
        self._register_soon()

    def connection_lost(self, address: str) -> None:
        """Registers again at a nameserver that forgot us with the connection."""
        for target in self._targets:
            if target.address == address:
                target.wanted.set()

    # --- RaftListener -----------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Registers as the leader everywhere, at once."""
        self._register_soon()

    def on_stopped_serving(self) -> None:
        """Registers as a follower everywhere, at once."""
        self._register_soon()

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing: what counts is whether this replica serves."""

    # --- inside -----------------------------------------------------------------------------

    def _register_soon(self) -> None:
        for target in self._targets:
            target.wanted.set()

    async def _keep_registered(self, target: _Target) -> None:
        pause_s = RETRY_MIN_S
        while True:
            # Cleared before the state is read: a change meanwhile sets it again.
            target.wanted.clear()
            if await self._register(target):
                pause_s = RETRY_MIN_S
                await _wait(target.wanted, self._context.config.timing.register_interval_s)
            else:
                # A change of role does not hurry: the nameserver does not answer anyway.
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def _register(self, target: _Target) -> bool:
        body = self._encoded_body()
        header = RegisterBrokerHeader(
            broker_name=self._context.config.broker_name,
            broker_address=self._context.address,
            cluster_name=self._context.config.cluster_name,
            ha_server_address=self._context.config.replica.raft_address,
            broker_id=self._broker_id(),
            body_crc32=zlib.crc32(body) & 0x7FFF_FFFF,
            term=self._context.raft.term,
            shared_address=self._shared_address.held,
        )
        reason = ""
        try:
            answer = await self._client.request(
                target.address,
                RequestCode.REGISTER_BROKER,
                header,
                body,
                self._context.config.timing.register_timeout_s,
            )
            if answer.code != ResponseCode.SUCCESS:
                reason = f"code {answer.code}: {answer.remark}"
        except DLedgerError as error:
            reason = str(error)
        self._note(target, reason)
        return not reason

    def _note(self, target: _Target, reason: str) -> None:
        is_known = not reason
        if is_known == target.is_known:
            return
        target.is_known = is_known
        if is_known:
            logger.info("registered: nameserver=%s", target.address)
        else:
            logger.warning(
                "not registered, trying again: nameserver=%s reason=%s", target.address, reason
            )

    async def _unregister(self, address: str, timeout_s: float) -> None:
        header = UnregisterBrokerHeader(
            broker_name=self._context.config.broker_name,
            broker_address=self._context.address,
            cluster_name=self._context.config.cluster_name,
            broker_id=self._broker_id(),
        )
        try:
            code = RequestCode.UNREGISTER_BROKER
            await self._client.request(address, code, header, b"", timeout_s)
        except DLedgerError as error:
            logger.debug("not unregistered: nameserver=%s reason=%s", address, error)

    def _broker_id(self) -> int:
        if self._context.raft.is_serving:
            return LEADER_ID
        return self._context.follower_broker_id

    def _encoded_body(self) -> bytes:
        key = (self._topics_version, self._context.raft.term)
        if self._body is not None and self._body[0] == key:
            return self._body[1]
        version = DataVersion(
            counter=self._topics_version,
            state_version=self._context.raft.term,
            timestamp_ms=self._topics_changed_ms,
        )
        topics = registered_topics(self._catalog.system_topics(), self._context.store.topics)
        body = encode_register_broker(RegisterBrokerBody(topics=topics, data_version=version))
        self._body = (key, body)
        return body


def registered_topics(
    system: Sequence[TopicConfig], stored: Mapping[str, TopicConfig]
) -> dict[str, TopicConfig]:
    """Returns the topics to register: the stored ones, and system topics not stored yet."""
    return {**{topic.name: topic for topic in system}, **stored}


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
