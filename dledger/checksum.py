"""The CRC-32 of log records and message bodies: zlib's, computed by who is fastest here.

zlib-ng uses the processor's carry-less multiplication and is about six times as fast as the zlib
that most systems have; the values are the same. Where it is not installed zlib does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable


def fastest_crc32() -> Callable[..., int]:
    """Returns `crc32(data, value=0)` with the values of `zlib.crc32`."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib.crc32
    return zlib_ng.crc32


crc32 = fastest_crc32()
