"""Typed headers of popping (200050 to 200055); see `headers`."""

from __future__ import annotations

from msgspec import Struct, field

from dledger.remoting.headers import Int32, Int64


class PopMessageHeader(Struct, kw_only=True):
    """POP_MESSAGE. `queue_id` -1: any; `init_mode` 0: begin with the oldest, 1: the newest."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    message_count_max: Int32 = field(name="maxMsgNums")
    invisible_ms: Int64 = field(name="invisibleTime")
    poll_ms: Int64 = field(name="pollTime", default=0)
    born_ms: Int64 = field(name="bornTime", default=0)
    init_mode: Int32 = field(name="initMode", default=0)
    expression_type: str = field(name="expType", default="TAG")
    expression: str = field(name="exp", default="")
    order: bool = False
    attempt_id: str = field(name="attemptId", default="")


class PopMessageResponse(Struct, kw_only=True):
    """What every answer to a pop carries, found or not; see `dledger.message.receipt`."""

    pop_ms: Int64 = field(name="popTime", default=0)
    invisible_ms: Int64 = field(name="invisibleTime", default=0)
    revive_queue: Int32 = field(name="reviveQid", default=0)
    rest_count: Int64 = field(name="restNum", default=0)
    start_offsets: str = field(name="startOffsetInfo", default="")
    message_offsets: str = field(name="msgOffsetInfo", default="")
    order_counts: str = field(name="orderCountInfo", default="")


class PeekMessageHeader(Struct, kw_only=True):
    """PEEK_MESSAGE: what a pop would get, without getting it."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    message_count_max: Int32 = field(name="maxMsgNums")


class AckMessageHeader(Struct, kw_only=True):
    """ACK_MESSAGE."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    handle: str = field(name="extraInfo")
    queue_offset: Int64 = field(name="offset")


class ChangeInvisibleTimeHeader(Struct, kw_only=True):
    """CHANGE_MESSAGE_INVISIBLETIME."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    handle: str = field(name="extraInfo")
    queue_offset: Int64 = field(name="offset")
    invisible_ms: Int64 = field(name="invisibleTime")


class ChangeInvisibleTimeResponse(Struct, kw_only=True):
    """With what the client makes the new handle; its start is the message's offset."""

    pop_ms: Int64 = field(name="popTime")
    invisible_ms: Int64 = field(name="invisibleTime")
    revive_queue: Int32 = field(name="reviveQid")


class NotificationHeader(Struct, kw_only=True):
    """NOTIFICATION: waits until a pop would find something."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    poll_ms: Int64 = field(name="pollTime", default=0)
    born_ms: Int64 = field(name="bornTime", default=0)
    expression_type: str = field(name="expType", default="TAG")
    expression: str = field(name="exp", default="")
    order: bool = False
    attempt_id: str = field(name="attemptId", default="")


class NotificationResponse(Struct, kw_only=True):
    """Whether there is something."""

    has_message: bool = field(name="hasMsg", default=False)
    is_full: bool = field(name="pollingFull", default=False)


class PollingInfoHeader(Struct, kw_only=True):
    """POLLING_INFO: how many pops wait."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
