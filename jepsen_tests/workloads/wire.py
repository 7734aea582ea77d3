"""Single requests straight on the wire, to the replica of one's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from dledger.codes import AUTO_CREATE_TOPIC, EXT_NO_FORWARD, PullFlag, RequestCode, ResponseCode
from dledger.message import iter_stored
from dledger.remoting.client import ClientConfig, RemotingClient
from dledger.remoting.errors import response_error
from dledger.remoting.headers import PullMessageHeader, PullMessageResponse, to_ext
from jepsen_tests.history import Value
from jepsen_tests.workloads.bodies import value_of

_PULL_ANSWERS = (
    ResponseCode.SUCCESS,
    ResponseCode.PULL_NOT_FOUND,
    ResponseCode.PULL_OFFSET_MOVED,
)


class Pulled(NamedTuple):
    """The answer to a pull: values with their offsets, and the queue's bounds."""

    offsets: list[int]
    values: list[Value]
    next_offset: int
    offset_min: int
    offset_max: int


class Wire:
    """Requests by hand. Every method raises `DLedgerError` as the remoting client does."""

    def __init__(self, replicas: Mapping[str, str], *, group: str, timeout_s: float) -> None:
        self.replicas = dict(replicas)
        self._group = group
        self._timeout_s = timeout_s
        self._lost: Counter[str] = Counter()
        self._client = RemotingClient(
            ClientConfig(connect_timeout_s=min(0.5, timeout_s)),
            on_connection_lost=lambda connection: self._lost.update((connection.address,)),
        )

    def connections_lost(self, node: str) -> int:
        """Returns how often the connection to a replica was lost: it may be another one since."""
        return self._lost[self.replicas[node]]

    async def close(self) -> None:
        """Disconnects."""
        await self._client.close()

    async def send(
        self, node: str, broker: str, topic: str, queue_id: int, body: bytes, *, forward: bool
    ) -> tuple[int, str]:
        """Appends a message; returns its queue offset and offset message id."""
        header: dict[str, object] = {
            "a": "jepsen", "b": topic, "c": AUTO_CREATE_TOPIC, "d": 4, "e": queue_id, "f": 0,
            "g": 0, "h": 0, "i": "", "j": 0, "k": "false", "m": "false", "n": broker,
        }  # fmt: skip
        if not forward:
            header[EXT_NO_FORWARD] = "1"
        address = self.replicas[node]
        answer = await self._client.request(
            address, RequestCode.SEND_MESSAGE_V2, header, body, timeout_s=self._timeout_s
        )
        if answer.code != ResponseCode.SUCCESS:
            raise response_error(answer, address)
        return int(answer.ext["queueOffset"]), answer.ext["msgId"]

    async def length(self, node: str, topic: str, queue_id: int) -> int:
        """Returns the offset of a queue's next message, confirmed by a majority."""
        header = {"topic": topic, "queueId": queue_id}
        address = self.replicas[node]
        answer = await self._client.request(
            address, RequestCode.GET_MAX_OFFSET, header, timeout_s=self._timeout_s
        )
        if answer.code != ResponseCode.SUCCESS:
            raise response_error(answer, address)
        return int(answer.ext["offset"])

    async def pull(self, node: str, topic: str, queue_id: int, start: int, count: int) -> Pulled:
        """Reads what this very replica has applied; it may not have another one answer."""
        header = PullMessageHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=queue_id,
            queue_offset=start,
            message_count_max=count,
            sys_flag=int(PullFlag.SUBSCRIPTION),
            commit_offset=0,
            suspend_timeout_ms=0,
            sub_version=0,
            subscription="*",
        )
        address = self.replicas[node]
        ext = {**to_ext(header), EXT_NO_FORWARD: "1"}
        answer = await self._client.request(
            address, RequestCode.PULL_MESSAGE, ext, timeout_s=self._timeout_s
        )
        if answer.code not in _PULL_ANSWERS:
            raise response_error(answer, address)
        bounds = answer.header(PullMessageResponse)
        found = list(iter_stored(answer.body)) if answer.code == ResponseCode.SUCCESS else []
        return Pulled(
            [message.queue_offset for message in found],
            [value_of(message.body) for message in found],
            bounds.next_begin_offset,
            bounds.offset_min,
            bounds.offset_max,
        )
