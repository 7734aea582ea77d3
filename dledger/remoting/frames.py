"""Frames of the remoting protocol, without I/O.

    0       4             5             8          8+h
    +-------+-------------+-------------+----------+------+
    | total | header type | header      | header   | body |
    |       | 0, 1        | length h    |          |      |
    +-------+-------------+-------------+----------+------+
     uint32  uint8         uint24        h          total - 4 - h

`total` counts everything after itself. There is no magic number: what a wrong peer sends first is
nearly always an impossible length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from dledger.codes import FRAME_BYTES_MAX
from dledger.errors import FrameTooLargeError, LocalProtocolError, RemoteProtocolError

HEADER_JSON = 0
HEADER_BINARY = 1

_PREFIX = struct.Struct(">II")
_TOTAL = struct.Struct(">I")
_PREFIX_SIZE = _PREFIX.size
_HEADER_LENGTH_MAX = 0xFFFFFF


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame; `header` and `body` are copies of their own."""

    header_type: int
    header: bytes
    body: bytes


class FrameDecoder:
    """Cuts a stream of bytes into frames.

    Memory is bound by what has been received: a length is compared with the limit before anything
    is kept for it, and nothing is ever allocated ahead. After an error the stream is lost, and
    every further `next_frame` raises it again.

    Cost:
        Linear in the bytes received. Small frames are cut straight from the received pieces;
        pieces of a large frame are joined once, when its last one has come.
    """

    __slots__ = ("_at", "_data", "_frame_bytes_max", "_held", "_pieces")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._data = b""  # contiguous; frames are cut from `_at` on
        self._at = 0
        self._pieces: list[bytes] = []  # received after `_data`
        self._held = 0  # bytes in `_pieces`

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet returned in a frame."""
        return len(self._data) - self._at + self._held

    def receive_data(self, data: bytes) -> None:
        """Takes the next bytes of the stream, of any length. They must not change afterwards."""
        if self._at == len(self._data) and not self._pieces:
            self._data = data
            self._at = 0
        else:
            self._pieces.append(data)
            self._held += len(data)

    def next_frame(self) -> Frame | None:
        """Returns the next whole frame, or `None` if more bytes are needed.

        Raises:
            FrameTooLargeError: The announced length exceeds the limit.
            RemoteProtocolError: The lengths disagree or the header type is unknown.
        """
        while True:
            data = self._data
            at = self._at
            have = len(data) - at
            if have >= _PREFIX_SIZE:
                total, word = _PREFIX.unpack_from(data, at)
                header_length = word & _HEADER_LENGTH_MAX
                if total > self._frame_bytes_max:
                    raise FrameTooLargeError(total, self._frame_bytes_max)
                if header_length > total - 4:
                    raise RemoteProtocolError(
                        f"frame of {total} bytes announces a header of {header_length}"
                    )
                if word >> 24 > HEADER_BINARY:
                    raise RemoteProtocolError(f"unknown header type {word >> 24}")
                wanted = total + 4
                if have >= wanted:
                    header_at = at + _PREFIX_SIZE
                    body_at = header_at + header_length
                    stop = at + wanted
                    if stop == len(data):
                        self._data = b""
                        self._at = 0
                    else:
                        self._at = stop
                    return Frame(word >> 24, data[header_at:body_at], data[body_at:stop])
            elif have >= 4:
                (total,) = _TOTAL.unpack_from(data, at)
                if total > self._frame_bytes_max:
                    raise FrameTooLargeError(total, self._frame_bytes_max)
                if total < 4:
                    raise RemoteProtocolError(f"frame of {total} bytes cannot hold a header")
                wanted = _PREFIX_SIZE
            else:
                wanted = 4
            if have + self._held < wanted or not self._pieces:
                return None
            self._join()

    def _join(self) -> None:
        rest = memoryview(self._data)[self._at :]
        self._data = b"".join((rest, *self._pieces))
        self._at = 0
        self._pieces.clear()
        self._held = 0


def encode_frame(header: bytes, body: bytes = b"", *, header_type: int = HEADER_JSON) -> bytes:
    """Returns a whole frame.

    Raises:
        LocalProtocolError: It would exceed 16 MiB.
    """
    return b"".join((frame_prefix(len(header), len(body), header_type), header, body))


def frame_prefix(header_length: int, body_length: int, header_type: int = HEADER_JSON) -> bytes:
    """Returns the 8 bytes before the header.

    Raises:
        LocalProtocolError: The frame would exceed 16 MiB.
    """
    total = 4 + header_length + body_length
    if total > FRAME_BYTES_MAX or header_length > _HEADER_LENGTH_MAX:
        raise LocalProtocolError(f"frame of {total} bytes exceeds the limit of {FRAME_BYTES_MAX}")
    return _PREFIX.pack(total, header_type << 24 | header_length)


def decode_frames(data: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> Iterable[Frame]:
    """Yields all frames of a buffer that must hold whole frames only.

    Raises:
        RemoteProtocolError: A frame is bad, or bytes are left over.
    """
    decoder = FrameDecoder(frame_bytes_max)
    decoder.receive_data(data)
    while (frame := decoder.next_frame()) is not None:
        yield frame
    if decoder.buffered_bytes:
        raise RemoteProtocolError(f"{decoder.buffered_bytes} bytes after the last whole frame")
