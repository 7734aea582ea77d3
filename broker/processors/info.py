"""What the broker says about itself: 26 and 28."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from broker.context import BrokerContext
from dledger.codes import PROTOCOL_VERSION
from dledger.model import Role
from dledger.remoting.bodies import DataVersion, encode_data_version, encode_kv_table
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

_NO_RATE = "0.0 0.0 0.0"


class InfoProcessor:
    """Describes this replica. Any replica answers for itself."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context

    def runtime_info(self, connection: Connection, command: Command) -> None:
        """28: a table of texts: the keys mqadmin reads, and ours about the replica."""
        connection.reply(command, body=encode_kv_table(self._table()))

    def config(self, connection: Connection, command: Command) -> None:
        """26: the configuration as properties text."""
        lines = sorted(f"{name}={value}" for name, value in _flatten("", self._context.config))
        text = "\n".join([*lines, ""])
        version = encode_data_version(DataVersion()).decode()
        connection.reply(command, 0, {"version": version}, body=text.encode())

    def _table(self) -> dict[str, str]:
        context = self._context
        raft, log, store = context.raft, context.log, context.store
        counters = context.counters
        long_polls = context.long_polls.statistics()
        clients = context.clients.statistics()
        leader = context.config.address_of(raft.leader_id)
        now_ms = context.clock.wall_ms()
        values: dict[str, object] = {
            "brokerVersionDesc": "dledger",
            "brokerVersion": PROTOCOL_VERSION,
            "brokerActive": raft.is_serving,
            "brokerRole": "SYNC_MASTER" if raft.role is Role.LEADER else "SLAVE",
            "bootTimestamp": context.boot_ms,
            "wallClockMs": now_ms,
            "runtime": f"[ {(now_ms - context.boot_ms) // 1000} seconds ]",
            "putTps": _NO_RATE,
            "getTransferredTps": _NO_RATE,
            "getTotalTps": _NO_RATE,
            "getFoundTps": _NO_RATE,
            "getMissTps": _NO_RATE,
            "sendThreadPoolQueueSize": 0,
            "pullThreadPoolQueueSize": 0,
            "sendThreadPoolQueueHeadWaitTimeMills": 0,
            "pullThreadPoolQueueHeadWaitTimeMills": 0,
            "pageCacheLockTimeMills": 0,
            "commitLogDiskRatio": "0.0",
            "dispatchBehindBytes": 0,
            "commitLogMinOffset": log.offset_min,
            "commitLogMaxOffset": log.offset_end,
            "msgPutTotalTodayNow": counters.messages_in,
            "msgGetTotalTodayNow": counters.messages_out,
            "startAcceptSendRequestTimeStamp": context.boot_ms,
            "replicaId": context.config.replica_id,
            "raftRole": raft.role.value,
            "raftTerm": raft.term,
            "raftLeader": raft.leader_id or "",
            "raftLeaderAddress": leader or "",
            "raftServing": raft.is_serving,
            "raftAddress": context.config.replica.raft_address,
            "raftPendingBytes": raft.pending_bytes,
            "commitIndex": raft.commit_index,
            "appliedIndex": raft.applied_index,
            "durableIndex": raft.durable_index,
            "logBytes": log.size_bytes,
            "retainedOffset": store.retained_offset,
            "diskFull": context.gate.is_disk_full,
            "pid": context.pid,
            "topicCount": len(store.topics),
            "groupCount": len(store.groups),
            "parkedPulls": long_polls.parked_count,
            "consumerGroupsOnline": clients.consumer_group_count,
            "pulls": counters.pulls,
            "pullsFound": counters.pulls_found,
            "forwarded": counters.forwarded,
            "deduplicated": counters.deduplicated,
        }
        return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flatten(at: str, value: Any) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(value):
        name = f"{at}{field.name}"
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            yield from _flatten(f"{name}.", item)
        elif isinstance(item, list):
            yield name, ";".join(str(getattr(part, "address", part)) for part in item)
        else:
            yield name, _text(item)
