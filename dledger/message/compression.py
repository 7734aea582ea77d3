"""Compression of message bodies.

The three codecs are those of RocketMQ; which one is in the message's `sysFlag`. A receiver never
lets a small body grow beyond a limit.
"""

from __future__ import annotations

import zlib

import lz4.frame
import zstandard

from dledger.codes import MessageFlag
from dledger.errors import RemoteProtocolError

DECOMPRESSED_BYTES_MAX = 32 * 1024 * 1024
_LEVEL = 5
_ZLIB_FLAGS = int(MessageFlag.COMPRESSED | MessageFlag.COMPRESSION_ZLIB)
_COMPRESSED = int(MessageFlag.COMPRESSED)
_TYPE_MASK = int(MessageFlag.COMPRESSION_MASK)
_LZ4 = int(MessageFlag.COMPRESSION_LZ4)
_ZSTD = int(MessageFlag.COMPRESSION_ZSTD)


def compress_body(body: bytes) -> tuple[bytes, int]:
    """Compresses with zlib, the one codec that every client can read.

    Returns:
        The bytes to store and the `sysFlag` bits to set; the body itself and 0 when compression
        would not make it smaller.
    """
    compressed = zlib.compress(body, _LEVEL)
    if len(compressed) >= len(body):
        return body, 0
    return compressed, _ZLIB_FLAGS


def decompress_body(
    body: bytes | memoryview, sys_flag: int, *, bytes_max: int = DECOMPRESSED_BYTES_MAX
) -> bytes:
    """Returns the body as its producer gave it.

    Args:
        body: Stored body.
        sys_flag: The message's flags; without the compression bit the body is returned as it is.
        bytes_max: Largest result that is allowed.

    Raises:
        RemoteProtocolError: The body is damaged, torn or larger than `bytes_max` when inflated.
    """
    if not sys_flag & _COMPRESSED:
        return bytes(body)
    kind = sys_flag & _TYPE_MASK
    try:
        if kind == _LZ4:
            result = _from_lz4(body, bytes_max)
        elif kind == _ZSTD:
            result = _from_zstd(body, bytes_max)
        else:
            result = _from_zlib(body, bytes_max)
    except (zlib.error, RuntimeError, zstandard.ZstdError, EOFError) as exc:
        raise RemoteProtocolError(f"compressed message body is damaged: {exc}") from exc
    if len(result) > bytes_max:
        raise RemoteProtocolError(f"compressed message body inflates to over {bytes_max} bytes")
    return result


def _from_zlib(body: bytes | memoryview, bytes_max: int) -> bytes:
    inflater = zlib.decompressobj()
    result = inflater.decompress(body, bytes_max + 1)
    if len(result) <= bytes_max and not inflater.eof:
        raise EOFError("it ends too early")
    return result


def _from_lz4(body: bytes | memoryview, bytes_max: int) -> bytes:
    inflater = lz4.frame.LZ4FrameDecompressor()  # type: ignore[no-untyped-call]
    result = bytes(inflater.decompress(body, bytes_max + 1))  # type: ignore[no-untyped-call]
    if len(result) <= bytes_max and not inflater.eof:
        raise EOFError("it ends too early")
    return result


def _from_zstd(body: bytes | memoryview, bytes_max: int) -> bytes:
    size = zstandard.frame_content_size(body)
    if size > bytes_max:
        raise RemoteProtocolError(f"compressed message body inflates to over {bytes_max} bytes")
    inflater = zstandard.ZstdDecompressor()
    if size >= 0:
        return inflater.decompress(body)
    # The frame does not say its size. The reader stops at a limit but takes a torn frame for a
    # whole one; the object tells the two apart but knows no limit. So the first only counts.
    size = 0
    with inflater.stream_reader(bytes(body)) as reader:
        while size <= bytes_max and (piece := reader.read(1 << 18)):
            size += len(piece)
    if size > bytes_max:
        raise RemoteProtocolError(f"compressed message body inflates to over {bytes_max} bytes")
    whole = inflater.decompressobj()
    result = whole.decompress(body)
    if not whole.eof:
        raise EOFError("it ends too early")
    return result
