"""Small files that are replaced in one step, also when the disk is full.

New content is written to a spare file that takes the old one's place. The spare is kept ready with
its space allocated, so that a replica with a full disk can still vote and lead, and serve reads.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from dledger.errors import DiskFailureError
from store.files import FileSystem


def read_file(fs: FileSystem, path: Path, bytes_max: int) -> bytes | None:
    """Returns the first bytes of a file, None if there is none."""
    if path.name not in fs.list_directory(path.parent):
        return None
    file = fs.open(path)
    try:
        return fs.read(file, 0, bytes_max)
    finally:
        fs.close(file)


def replace_file(fs: FileSystem, path: Path, data: bytes, capacity_bytes: int) -> None:
    """Replaces the content of a file. What lies behind `data` in it means nothing.

    Args:
        fs: The disk.
        path: The file; its spare is called the same with `.spare`.
        data: At most `capacity_bytes` long.
        capacity_bytes: What the spare keeps allocated.

    Raises:
        OSError: The old content still stands.
        DiskFailureError: It is not known which of the two would survive a loss of power.

    Durability: synced on return.
    """
    spare = path.with_name(path.name + ".spare")
    try:
        file = fs.open(spare)
    except FileNotFoundError:
        file = fs.create(spare, capacity_bytes)
    try:
        fs.allocate(file, capacity_bytes)  # its creation may have been cut short
        fs.write(file, 0, [data])
        fs.sync(file)
    finally:
        fs.close(file)
    fs.rename(spare, path)
    try:
        fs.sync_directory(path.parent)
    except OSError as error:
        raise DiskFailureError(f"the new {path.name} could not be made durable: {error}") from error
    with contextlib.suppress(OSError):
        fs.close(fs.create(spare, capacity_bytes))
