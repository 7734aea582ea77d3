"""Wall time that the harness moves: an offset in a small file that every reader maps."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from dledger.clock import SystemClock

_OFFSET = struct.Struct("=q")


class SkewedClock(SystemClock):
    """The machine's clocks, but wall time is off by what the file says. Satisfies `Clock`.

    The monotonic clock is left alone, as no step of the wall clock ever moves it.
    """

    def __init__(self, path: Path) -> None:
        """Maps the file; makes it if it is not there."""
        if not path.exists():
            set_offset_ms(path, 0)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _OFFSET.size, prot=mmap.PROT_READ)

    def wall_ms(self) -> int:
        """Returns milliseconds since the epoch, moved."""
        return super().wall_ms() + int(_OFFSET.unpack_from(self._map)[0])


def set_offset_ms(path: Path, offset_ms: int) -> None:
    """Moves the clocks of all processes that mapped this file."""
    if path.exists() and path.stat().st_size == _OFFSET.size:
        with path.open("r+b") as file:
            file.write(_OFFSET.pack(offset_ms))
        return
    path.write_bytes(_OFFSET.pack(offset_ms))
