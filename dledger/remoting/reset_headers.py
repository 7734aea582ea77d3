"""Typed headers of the requests that move consumer groups (222, 314); see `headers`."""

from __future__ import annotations

from msgspec import Struct, field

from dledger.remoting.headers import Int32, Int64


class ResetOffsetHeader(Struct, kw_only=True):
    """INVOKE_BROKER_TO_RESET_OFFSET. `timestamp_ms` -1: the end; `queue_id` -1: all queues."""

    group: str
    topic: str
    timestamp_ms: Int64 = field(name="timestamp")
    queue_id: Int32 | None = field(name="queueId", default=None)
    offset: Int64 | None = None


class CloneGroupOffsetHeader(Struct, kw_only=True):
    """CLONE_GROUP_OFFSET. Without a topic: all."""

    source_group: str = field(name="srcGroup")
    target_group: str = field(name="destGroup")
    topic: str = ""
    offline: bool = False
