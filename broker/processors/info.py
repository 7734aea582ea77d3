"""What the broker says about itself: 28."""

from __future__ import annotations

from broker.context import BrokerContext
from broker.statistics import Meter
from dledger.codes import PROTOCOL_VERSION
from dledger.model import Role
from dledger.raft.configuration import Member
from dledger.remoting.bodies import encode_kv_table
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

_WINDOWS_S = (10, 60, 600)


class InfoProcessor:
    """Describes this replica. Any replica answers for itself."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context

    def runtime_info(self, connection: Connection, command: Command) -> None:
        """28: a table of texts: the keys mqadmin reads, and ours about the replica."""
        connection.reply(command, body=encode_kv_table(self._table()))

    def _table(self) -> dict[str, str]:
        context = self._context
        raft, log, store = context.raft, context.log, context.store
        counters = context.counters
        long_polls = context.long_polls.statistics()
        clients = context.clients.statistics()
        leader = context.address_of(raft.leader_id)
        now_ms = context.clock.wall_ms()
        free_bytes = context.gate.free_bytes
        values: dict[str, object] = {
            "brokerVersionDesc": "dledger",
            "brokerVersion": PROTOCOL_VERSION,
            "brokerActive": raft.is_serving,
            "brokerRole": "SYNC_MASTER" if raft.role is Role.LEADER else "SLAVE",
            "bootTimestamp": context.boot_ms,
            "wallClockMs": now_ms,
            "runtime": f"[ {(now_ms - context.boot_ms) // 1000} seconds ]",
            **self._rates(),
            "sendThreadPoolQueueSize": 0,
            "pullThreadPoolQueueSize": 0,
            "sendThreadPoolQueueHeadWaitTimeMills": 0,
            "pullThreadPoolQueueHeadWaitTimeMills": 0,
            "pageCacheLockTimeMills": 0,
            "commitLogDiskRatio": round(log.size_bytes / max(1, log.size_bytes + free_bytes), 4),
            "diskFreeBytes": free_bytes,
            "dispatchBehindBytes": 0,
            "commitLogMinOffset": log.offset_min,
            "commitLogMaxOffset": log.offset_end,
            "startAcceptSendRequestTimeStamp": context.boot_ms,
            "replicaId": context.config.replica_id,
            "raftRole": raft.role.value,
            "raftTerm": raft.term,
            "raftMembers": ";".join(
                f"{member.id}={member.address}" for member in raft.configuration.members
            ),
            "programVersion": context.program_version,
            "raftLeader": raft.leader_id or "",
            "raftLeaderAddress": leader or "",
            "raftServing": raft.is_serving,
            "raftAddress": context.config.replica.raft_address,
            "raftMember": _membership(context.member),
            "raftIncarnation": raft.identity.incarnation,
            "raftConfigurationIndex": raft.configuration.index,
            "raftVoters": ";".join(raft.configuration.voters),
            "raftLearners": ";".join(raft.configuration.learners),
            "raftPendingBytes": raft.pending_bytes,
            "commitIndex": raft.commit_index,
            "appliedIndex": raft.applied_index,
            "durableIndex": raft.durable_index,
            "logBytes": log.size_bytes,
            "retainedOffset": store.retained_offset,
            "diskFull": context.gate.is_disk_full,
            "roomToLead": context.gate.has_room_to_lead,
            "pid": context.pid,
            "topicCount": len(store.topics),
            "groupCount": len(store.groups),
            "parkedPulls": long_polls.parked_count,
            "consumerGroupsOnline": clients.consumer_group_count,
            "forwarded": counters.forwarded,
            "deduplicated": counters.deduplicated,
            "quotaRefused": context.quotas.refused,
            "subscriptionDifferences": len(context.clients.differences()),
        }
        return {name: _text(value) for name, value in values.items()}

    def _rates(self) -> dict[str, object]:
        statistics, now_s = self._context.statistics, self._context.clock.monotonic()

        def rates(*meters: Meter) -> str:
            per_second = [
                sum(meter.last(now_s, window_s).per_second for meter in meters)
                for window_s in _WINDOWS_S
            ]
            return " ".join(f"{rate:.2f}" for rate in per_second)

        put, got = statistics.put.messages, statistics.got.messages
        transferred = rates(got)
        return {
            "putTps": rates(put),
            "getTransferredTps": transferred,
            # As releases before 5.0 spell it.
            "getTransferedTps": transferred,
            "getFoundTps": transferred,
            "getMissTps": rates(statistics.missed.messages),
            "getTotalTps": rates(got, statistics.missed.messages),
            "msgPutTotalYesterdayMorning": statistics.put_days.yesterday_morning,
            "msgPutTotalTodayMorning": statistics.put_days.today_morning,
            "msgPutTotalTodayNow": int(put.amount),
            "msgGetTotalYesterdayMorning": statistics.got_days.yesterday_morning,
            "msgGetTotalTodayMorning": statistics.got_days.today_morning,
            "msgGetTotalTodayNow": int(got.amount),
            "pulls": got.times + statistics.missed.messages.times,
            "pullsFound": got.times,
            "putMessageAverageSize": round(statistics.put.bytes.amount / max(1, put.amount), 1),
            "putLatencyMillis": round(statistics.put.seconds.minute(now_s).per_time * 1000, 3),
        }


def _membership(member: Member | None) -> str:
    if member is None:
        return "none"
    return "voter" if member.is_voter else "learner"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
