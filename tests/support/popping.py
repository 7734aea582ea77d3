"""Pops, acknowledgements and changes as raw requests to one broker."""

from dledger.codes import RequestCode
from dledger.message import ReceiptHandle, decode_start_offsets, iter_stored, retry_mark
from dledger.remoting.headers import to_ext
from dledger.remoting.pop_headers import (
    AckMessageHeader,
    ChangeInvisibleTimeHeader,
    NotificationHeader,
    PopMessageHeader,
    PopMessageResponse,
)


class Popper:
    """One consumer of a group, as clients on other languages would be."""

    def __init__(self, client, topic, group="g", broker_name="broker-a"):
        self.client = client
        self.topic = topic
        self.group = group
        self.broker_name = broker_name

    async def ask(self, *, count=32, queue_id=-1, invisible_ms=60_000, poll_ms=0, ext=None, **more):
        header = PopMessageHeader(
            consumer_group=self.group,
            topic=self.topic,
            queue_id=queue_id,
            message_count_max=count,
            invisible_ms=invisible_ms,
            poll_ms=poll_ms,
            **more,
        )
        return await self.client.call(
            RequestCode.POP_MESSAGE, {**to_ext(header), **(ext or {})}, timeout_s=30
        )

    async def pop(self, **more):
        """Returns (message, handle) of what was popped."""
        answer = await self.ask(**more)
        assert answer.code in (0, 210), (answer.code, answer.remark)
        return self.read(answer)

    def read(self, answer):
        """Makes handles as a client does."""
        if answer.code != 0:
            return []
        header = answer.header(PopMessageResponse)
        starts = decode_start_offsets(header.start_offsets)
        found = []
        for message in iter_stored(answer.body):
            mark = retry_mark(message.topic)
            handle = ReceiptHandle(
                starts[mark, message.queue_id],
                header.pop_ms,
                header.invisible_ms,
                header.revive_queue,
                mark,
                self.broker_name,
                message.queue_id,
                message.queue_offset,
            )
            found.append((message, handle))
        return found

    async def ack(self, handle):
        header = AckMessageHeader(
            consumer_group=self.group,
            topic=self.topic,
            queue_id=handle.queue_id,
            handle=handle.encode(),
            queue_offset=handle.offset,
        )
        return (await self.client.call(RequestCode.ACK_MESSAGE, header)).code

    async def change(self, handle, invisible_ms):
        """Returns the new handle, None for a stale one."""
        header = ChangeInvisibleTimeHeader(
            consumer_group=self.group,
            topic=self.topic,
            queue_id=handle.queue_id,
            handle=handle.encode(),
            queue_offset=handle.offset,
            invisible_ms=invisible_ms,
        )
        answer = await self.client.call(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, header)
        if answer.code != 0:
            return None
        return handle._replace(
            start=handle.offset, pop_ms=int(answer.ext["popTime"]), invisible_ms=invisible_ms
        )

    async def has_messages(self, *, queue_id=-1, poll_ms=0, **more):
        header = NotificationHeader(
            consumer_group=self.group, topic=self.topic, queue_id=queue_id, poll_ms=poll_ms, **more
        )
        answer = await self.client.call(RequestCode.NOTIFICATION, header, timeout_s=30)
        assert answer.code == 0, answer.remark
        return answer.ext["hasMsg"] == "true"
