"""A data directory that is to join a group: made by `dledger replica rebuild` and `add-replica`.

    DATA/join        JSON: who this replica will be, and the group as its leader described it

It is read when the log is a new one; from then on the log's own files say who this replica is. The
old data lies beside, in `DATA/old-<time>/`, until somebody removes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from dledger.errors import StoreError
from dledger.remoting.members import GroupConfiguration
from store.lmdb_env import store_errors

JOIN_FILE: Final = "join"
# What a replica keeps, and a rebuilt one must not find.
DATA_NAMES: Final = ("log", "state", "snapshots", "installing", JOIN_FILE)


class Joining(msgspec.Struct, frozen=True):
    """What the join file says."""

    replica_id: str
    incarnation: int
    configuration: GroupConfiguration


def read_joining(directory: Path) -> Joining | None:
    """Returns what a data directory was prepared for, None if it was not.

    Raises:
        StoreError: The file is damaged.
    """
    try:
        data = (directory / JOIN_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Joining)
    except msgspec.DecodeError as error:
        raise StoreError(f"{directory / JOIN_FILE} is damaged: {error}") from error


def move_aside(directory: Path, stamp: str) -> Path | None:
    """Moves a replica's data out of the way; returns where to, None if there was none.

    Nobody may have it open. Interrupted, it can be done again.
    """
    found = [directory / name for name in DATA_NAMES if (directory / name).exists()]
    if not found:
        return None
    aside = directory / f"old-{stamp}"
    with store_errors(directory):
        aside.mkdir(exist_ok=True)
        for path in found:
            path.rename(aside / path.name)
        _sync(directory)
    return aside


def write_joining(directory: Path, joining: Joining) -> None:
    """Prepares an empty data directory. Durability: synced on return."""
    with store_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / (JOIN_FILE + ".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(joining))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / JOIN_FILE)
        _sync(directory)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
