"""What a replica does with requests that only the leader can answer.

Official clients learn of a new leader only when they look at the route again, up to 30 s later. So
a replica that does not lead hands such requests on, one hop, and waits a little for an election to
end. Our own client says that it would rather know: it gets a definite refusal with the leader's
address, and goes there itself.

A forwarded request that fails after it was sent may have taken effect, and the answer says so;
before that it is tried again until the time is up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from broker.context import Counters, RaftView
from broker.tasks import Tasks
from dledger.codes import (
    EXT_FORWARDED,
    EXT_LEADER_ADDRESS,
    EXT_NO_FORWARD,
    EXT_OUTCOME,
    EXT_TERM,
    OUTCOME_REFUSED,
    RequestCode,
    ResponseCode,
)
from dledger.errors import (
    ClientClosedError,
    ConnectionLostError,
    DLedgerError,
    FlowControlError,
    LeadershipLostError,
    NotLeaderError,
    RequestTimeoutError,
)
from dledger.remoting.client import RemotingClient
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

EXT_BORN_HOST = "dlBornHost"
# A new leader is noticed by an event; this is for the one that is known and does not serve yet.
RETRY_PAUSE_S = 0.1
# What the old leader gets to answer in before it counts as silent: a stopped process never does.
LAST_ANSWERS_S = 0.5
_SENDS = (
    RequestCode.SEND_MESSAGE,
    RequestCode.SEND_MESSAGE_V2,
    RequestCode.SEND_BATCH_MESSAGE,
)


@dataclass(frozen=True, kw_only=True)
class ForwarderLimits:
    """How much and how long a replica holds for others.

    Attributes:
        wait_s: How long a request waits for a leader.
        timeout_s: How long it then waits for the leader's answer.
        count_max: Requests held or under way.
        bytes_max: The bytes of their bodies.
    """

    wait_s: float
    timeout_s: float
    count_max: int
    bytes_max: int


class Forwarder:
    """Hands requests on to the leader. Satisfies `RaftListener`."""

    def __init__(
        self,
        raft: RaftView,
        client: RemotingClient,
        tasks: Tasks,
        *,
        replica_id: str,
        address_of: Callable[[str | None], str | None],
        handle_here: Callable[[Connection, Command], None],
        counters: Counters,
        limits: ForwarderLimits,
    ) -> None:
        """Prepares forwarding.

        Args:
            raft: Who leads.
            client: Connections to the other replicas.
            tasks: Owner of the requests under way.
            replica_id: This replica.
            address_of: Client address of a replica.
            handle_here: Takes a request when this replica has become the leader meanwhile.
            counters: Where forwarded requests are counted.
            limits: Bounds.
        """
        self._raft = raft
        self._client = client
        self._tasks = tasks
        self._replica_id = replica_id
        self._address_of = address_of
        self._handle_here = handle_here
        self._counters = counters
        self._limits = limits
        self._count = 0
        self._bytes = 0
        self._asked: dict[str, int] = {}  # requests under way by the address that was asked
        self._changed: asyncio.Event = asyncio.Event()

    def forward(self, connection: Connection, command: Command) -> None:
        """Answers a request that only the leader can answer, now or later.

        Raises:
            NotLeaderError: The request has made its hop already.
            FlowControlError: Too much is held.
        """
        ext = command.ext
        if ext.get(EXT_FORWARDED) or ext.get(EXT_NO_FORWARD):
            self.refuse(connection, command)
            return
        size = len(command.body)
        if self._count >= self._limits.count_max:
            raise FlowControlError(f"limits.forwards_max = {self._limits.count_max} is reached")
        if self._bytes + size > self._limits.bytes_max:
            limit = self._limits.bytes_max
            raise FlowControlError(f"limits.forward_bytes_max = {limit} is reached")
        self._count += 1
        self._bytes += size
        name = f"forward-{connection.id}-{command.opaque}"
        self._tasks.spawn(self._run(connection, command, size), name)

    def refuse(self, connection: Connection, command: Command) -> None:
        """Answers "not the leader", with the leader's address if it is known."""
        error = NotLeaderError(self._raft.leader_id, self._raft.term)
        ext: dict[str, object] = {
            EXT_OUTCOME: OUTCOME_REFUSED,
            EXT_TERM: self._raft.term,
            # None is left out.
            EXT_LEADER_ADDRESS: self._address_of(self._raft.leader_id),
        }
        connection.reply(command, ResponseCode.SERVICE_NOT_AVAILABLE, ext, str(error))

    # --- RaftListener -----------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Wakes those who wait for a leader: it is here."""
        self._wake()

    def on_stopped_serving(self) -> None:
        """Does nothing: there is no new leader yet."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Wakes those who wait for a leader, and soon those who wait for the one before."""
        if leader_id is not None:
            self._wake()
            if self._asked:
                loop = asyncio.get_running_loop()
                loop.call_later(LAST_ANSWERS_S, self._leave_silent, leader_id)

    # --- inside -----------------------------------------------------------------------------

    def _leave_silent(self, leader_id: str) -> None:
        """Ends what still waits for a replica that has been replaced; its outcome is unknown."""
        if self._raft.leader_id == leader_id:
            address_now = self._address_of(leader_id)
            for address in [address for address in self._asked if address != address_now]:
                self._client.give_up(address, "another replica leads")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self, connection: Connection, command: Command, size: int) -> None:
        try:
            await self._forward(connection, command)
        except DLedgerError as error:
            connection.reply_error(command, error)
        finally:
            self._count -= 1
            self._bytes -= size

    async def _forward(self, connection: Connection, command: Command) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.wait_s
        while True:
            if self._raft.is_serving:
                self._handle_here(connection, command)
                return
            address = self._address_of(self._raft.leader_id)
            # If this replica itself is said to lead, it is waiting for its no-op.
            elsewhere = self._raft.leader_id != self._replica_id
            if address and elsewhere and await self._attempt(address, connection, command):
                return
            remaining = deadline - loop.time()
            if remaining <= 0:
                self.refuse(connection, command)
                return
            await self._wait_for_change(min(remaining, RETRY_PAUSE_S))

    async def _wait_for_change(self, timeout_s: float) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return

    async def _attempt(self, address: str, connection: Connection, command: Command) -> bool:
        """Sends a request to the leader; False if it had no effect and may be tried again."""
        ext: dict[str, object] = {**command.ext, EXT_FORWARDED: "1"}
        if command.code in _SENDS:
            ext[EXT_BORN_HOST] = f"{connection.peer_host}:{connection.peer_port}"
        try:
            if command.is_oneway:
                await self._client.send_oneway(address, command.code, ext, command.body)
                return True
            self._asked[address] = self._asked.get(address, 0) + 1
            try:
                answer = await self._client.request(
                    address, command.code, ext, command.body, self._limits.timeout_s
                )
            finally:
                self._asked[address] -= 1
                if not self._asked[address]:
                    del self._asked[address]
        except (ConnectionLostError, RequestTimeoutError) as error:
            raise LeadershipLostError(
                f"the leader at {address} did not answer; the outcome is unknown: {error}"
            ) from error
        except ClientClosedError:
            raise
        except DLedgerError as error:
            if not error.definite:
                raise
            return False
        if self._is_stale_leader(answer):
            return False
        self._counters.forwarded += 1
        fields = {name: value for name, value in answer.ext.items() if name != EXT_LEADER_ADDRESS}
        connection.reply(command, answer.code, fields, answer.remark or None, answer.body)
        return True

    def _is_stale_leader(self, answer: Command) -> bool:
        """Tells whether the supposed leader refused because it does not lead (any more)."""
        return (
            answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
            and answer.ext.get(EXT_OUTCOME) == OUTCOME_REFUSED
            and EXT_TERM in answer.ext
        )
