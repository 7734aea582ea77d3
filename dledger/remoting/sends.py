"""Single sends, the request that is worth a way of its own: decoded and answered in one step each.

Nothing here decides anything that `commands` and `headers` do not: what is not certainly an
ordinary send is left to them, and both give the same values and the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from dledger.codes import CommandFlag, RequestCode
from dledger.remoting.commands import JsonHeader, encode_ext, encode_head
from dledger.remoting.frames import FRAME_PREFIX_BYTES, HEADER_JSON, Frame, encode_frames
from dledger.remoting.headers import SendMessageHeader, SendMessageHeaderV2

# Our own clients and replicas say more than official clients do, in fields that begin like this.
_OWN_MARK = b'"dl'
_KEY_MARK, _MESSAGE_MARK, _OFFSET_MARK, _QUEUE_MARK = "<key>", "<message>", "<offset>", "<queue>"


SendHeader = SendMessageHeader | SendMessageHeaderV2


class _ShortNames(JsonHeader):
    fields: SendMessageHeaderV2 | None = msgspec.field(name="extFields", default=None)


class _LongNames(JsonHeader):
    fields: SendMessageHeader | None = msgspec.field(name="extFields", default=None)


_START_BYTES = 12
_Decoder = msgspec.json.Decoder[_ShortNames] | msgspec.json.Decoder[_LongNames]
# By how the headers begin that Java, C++ and Go clients write.
_DECODERS: Mapping[bytes, tuple[int, _Decoder]] = MappingProxyType(
    {
        b'{"code":310,': (
            RequestCode.SEND_MESSAGE_V2,
            msgspec.json.Decoder(_ShortNames, strict=False),
        ),
        b'{"code":10,"': (RequestCode.SEND_MESSAGE, msgspec.json.Decoder(_LongNames, strict=False)),
    }
)


def may_be_send(frame: Frame) -> bool:
    """Tells at little cost whether `decode_send` is worth trying."""
    return frame.header[:_START_BYTES] in _DECODERS


def decode_send(frame: Frame) -> tuple[int, SendHeader] | None:
    """Returns opaque and fields of a client's send of one message that wants an answer.

    None means: look at the frame as at any other. That may well be such a send too.
    """
    header = frame.header
    found = _DECODERS.get(header[:_START_BYTES])
    if found is None or frame.header_type != HEADER_JSON or _OWN_MARK in header:
        return None
    code, decoder = found
    try:
        request = decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    fields = request.fields
    if request.code != code or request.flag or fields is None or fields.batch:
        return None
    return request.opaque, fields


class SendAnswers:
    """Answers to sends of one message: all but five values is the same in each."""

    __slots__ = ("_template",)

    def __init__(self, host: str, fixed: Mapping[str, str]) -> None:
        """Makes the template from an answer that is encoded as any other.

        Args:
            host: Beginning of the message ids: the broker's packed address in hexadecimal.
            fixed: What stands in every answer behind the queue's place.
        """
        ext = {
            "msgId": host + _MESSAGE_MARK,
            "queueId": _QUEUE_MARK,
            "queueOffset": _OFFSET_MARK,
            **fixed,
            "transactionId": _KEY_MARK,
        }
        head = encode_head(0, 0, int(CommandFlag.RESPONSE), encode_ext(ext), 0)
        template = head[FRAME_PREFIX_BYTES:].replace(b"%", b"%%")
        for mark, form in (
            (_MESSAGE_MARK.encode(), b"%016X"),
            (_QUEUE_MARK.encode(), b"%d"),
            (_OFFSET_MARK.encode(), b"%d"),
            (_KEY_MARK.encode(), b"%b"),
            (b'"opaque":0', b'"opaque":%d'),
        ):
            template = template.replace(mark, form)
        self._template = template

    def encode(
        self,
        opaques: Sequence[int],
        queue_ids: Sequence[int],
        queue_offsets: Sequence[int],
        physical_offsets: Sequence[int],
        unique_keys: Sequence[bytes],
    ) -> list[bytes]:
        """Returns frames, one for each request.

        Args:
            opaques: Of the requests.
            queue_ids: Where each message is.
            queue_offsets: Its offset there.
            physical_offsets: And in the log.
            unique_keys: Of each message: ASCII letters and digits.
        """
        template = self._template
        return encode_frames(
            [
                template % values
                for values in zip(
                    physical_offsets, queue_ids, queue_offsets, unique_keys, opaques, strict=True
                )
            ]
        )
