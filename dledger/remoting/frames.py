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
FRAME_PREFIX_BYTES = _PREFIX.size
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

        Raises: as `next_frames`.
        """
        frames = self.next_frames(1)
        return frames[0] if frames else None

    def next_frames(self, count_max: int) -> list[Frame]:
        """Returns the next whole frames, at most so many; none if more bytes are needed.

        Raises, if no good frame stands before the bad one:
            FrameTooLargeError: The announced length exceeds the limit.
            RemoteProtocolError: The lengths disagree or the header type is unknown.
        """
        frames: list[Frame] = []
        data, at = self._data, self._at
        end = len(data)
        unpack, total_max, add = _PREFIX.unpack_from, self._frame_bytes_max, frames.append
        while len(frames) < count_max:
            wanted = 4
            if end - at >= FRAME_PREFIX_BYTES:
                total, word = unpack(data, at)
                header_length = word & _HEADER_LENGTH_MAX
                if total > total_max or header_length > total - 4 or word >> 24 > HEADER_BINARY:
                    if frames:
                        break
                    raise self._error(total, word)
                body_at = at + FRAME_PREFIX_BYTES + header_length
                wanted = total + 4
                if end - at >= wanted:
                    start = at + FRAME_PREFIX_BYTES
                    at += wanted
                    add(Frame(word >> 24, data[start:body_at], data[body_at:at]))
                    continue
            elif end - at >= 4:
                (total,) = _TOTAL.unpack_from(data, at)
                if not 4 <= total <= total_max:
                    if frames:
                        break
                    raise self._error(total, 0)
                wanted = FRAME_PREFIX_BYTES
            if frames or not self._pieces or end - at + self._held < wanted:
                break
            self._at = at
            self._join()
            data, at = self._data, 0
            end = len(data)
        self._data, self._at = (data, at) if at < end else (b"", 0)
        return frames

    def _error(self, total: int, word: int) -> RemoteProtocolError:
        """Returns what is wrong with the beginning of a frame."""
        if total > self._frame_bytes_max:
            return FrameTooLargeError(total, self._frame_bytes_max)
        if total < 4:
            return RemoteProtocolError(f"frame of {total} bytes cannot hold a header")
        if word & _HEADER_LENGTH_MAX > total - 4:
            return RemoteProtocolError(
                f"frame of {total} bytes announces a header of {word & _HEADER_LENGTH_MAX}"
            )
        return RemoteProtocolError(f"unknown header type {word >> 24}")

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


def encode_frames(headers: Iterable[bytes]) -> list[bytes]:
    """Returns frames without a body that have these JSON headers, short ones."""
    pack = _PREFIX.pack
    return [pack(4 + len(each), len(each)) + each for each in headers]


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
