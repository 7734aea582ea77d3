"""Tells brokers that this client lives and what it subscribes to.

Producers tell the leaders. Consumers tell every replica of their topics' groups, so that whichever
of them leads next knows the whole membership at once. A replica that restarted, or whose
connection broke, has forgotten us; so broken connections are looked for every second, not only
every heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dledger.client.routes import RouteCache
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.remoting.bodies import ConsumerData, HeartbeatData, encode_heartbeat
from dledger.remoting.client import RemotingClient
from dledger.remoting.headers import UnregisterClientHeader, to_ext

logger = logging.getLogger(__name__)

_CHECK_S = 1.0
_GOODBYE_S = 1.0
_PATIENCE_S = 0.3  # for the answers of replicas that nobody waits for


@dataclass(eq=False)
class Member:
    """This client's membership of one consumer group.

    `data` and `topics` may be replaced; the next heartbeat carries them.
    """

    data: ConsumerData
    topics: Sequence[str]
    on_change: Callable[[], None]
    gone: bool = field(default=False, init=False)


class Heartbeats:
    """Sends heartbeats for one client."""

    def __init__(
        self,
        routes: RouteCache,
        remoting: RemotingClient,
        client_id: str,
        interval_s: float,
        producer_group: str,
    ) -> None:
        self._routes = routes
        self._remoting = remoting
        self._client_id = client_id
        self._interval_s = interval_s
        self._producer_group = producer_group
        self._members: dict[str, Member] = {}
        self._wake = asyncio.Event()
        self._greeted: set[str] = set()  # replicas that know us, over a connection still up
        self._sending: dict[asyncio.Task[None], str] = {}

    def join(
        self, data: ConsumerData, topics: Sequence[str], on_change: Callable[[], None]
    ) -> Member:
        """Adds a membership; see `ClientSession.join`."""
        member = Member(data, topics, on_change)
        self._members[data.group] = member
        self.soon()
        return member

    async def leave(self, member: Member) -> None:
        """Ends a membership and tells the brokers. Errors do not matter: they notice anyway."""
        if self._members.get(member.data.group) is member:
            del self._members[member.data.group]
        header = UnregisterClientHeader(client_id=self._client_id, consumer_group=member.data.group)
        await self._tell_all(header)

    async def close(self) -> None:
        """Waits for no more answers and tells all brokers that this client ends."""
        tasks = list(self._sending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in list(self._members.values()):
            await self.leave(member)
        if self._producer_group and self._greeted:
            await self._tell_all(
                UnregisterClientHeader(
                    client_id=self._client_id, producer_group=self._producer_group
                )
            )

    def soon(self) -> None:
        """Sends heartbeats at once, in the background."""
        self._wake.set()

    def members_changed(self, group: str) -> None:
        """Passes on a broker's word that members of a group came or went."""
        member = self._members.get(group)
        if member is not None:
            member.on_change()

    def connection_lost(self, address: str) -> None:
        """Notes that a broker has forgotten us together with the connection."""
        self._greeted.discard(address)

    async def run(self) -> None:
        """Sends heartbeats until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                async with asyncio.timeout(min(_CHECK_S, self._interval_s)):
                    await self._wake.wait()
                due = loop.time()
            except TimeoutError:
                pass
            self._wake.clear()
            if loop.time() >= due:
                due = loop.time() + self._interval_s
                await self.send_all()
            else:
                await self._send_to(self._missing())

    async def send_all(self) -> None:
        """Sends one heartbeat to every broker concerned and awaits the answers of the leaders.

        Other replicas get a moment: one that is stopped must not hold up the rest.
        """
        await self._send_to(self._addresses())

    def _missing(self) -> list[str]:
        known = {*self._greeted, *self._sending.values()}
        return [address for address in self._addresses() if address not in known]

    def _leaders(self) -> set[str | None]:
        return {self._routes.book(name).leader for name in self._routes.broker_names()}

    def _addresses(self) -> list[str]:
        addresses: dict[str, None] = {}
        for member in self._members.values():
            for name in self._routes.broker_names(member.topics):
                addresses.update(dict.fromkeys(self._routes.book(name).addresses))
        if self._producer_group:
            for name in self._routes.broker_names():
                leader = self._routes.book(name).leader
                if leader is not None:
                    addresses[leader] = None
        return list(addresses)

    async def _send_to(self, addresses: Sequence[str]) -> None:
        if not addresses:
            return
        body = encode_heartbeat(
            HeartbeatData(
                client_id=self._client_id,
                producers=[self._producer_group] if self._producer_group else [],
                consumers=[member.data for member in self._members.values()],
            )
        )
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(self._send_one(address, body)): address for address in addresses}
        self._sending.update(tasks)
        for task in tasks:
            task.add_done_callback(self._sending.pop)
        _, pending = await asyncio.wait(tasks, timeout=_PATIENCE_S)
        leaders = self._leaders()
        needed = [task for task in pending if tasks[task] in leaders]
        if needed:
            await asyncio.wait(needed)

    async def _send_one(self, address: str, body: bytes) -> None:
        try:
            response = await self._remoting.request(address, RequestCode.HEART_BEAT, None, body)
        except DLedgerError as error:
            self._greeted.discard(address)
            logger.debug("heartbeat failed address=%s error=%s", address, error)
            return
        if response.code == ResponseCode.SUCCESS:
            self._greeted.add(address)
        else:
            logger.warning(
                "heartbeat refused address=%s code=%s remark=%s",
                address,
                response.code,
                response.remark,
            )

    async def _tell_all(self, header: UnregisterClientHeader) -> None:
        ext = to_ext(header)
        results = await asyncio.gather(
            *(
                self._remoting.request(
                    address, RequestCode.UNREGISTER_CLIENT, ext, timeout_s=_GOODBYE_S
                )
                for address in sorted(self._greeted)
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, DLedgerError):
                raise result
