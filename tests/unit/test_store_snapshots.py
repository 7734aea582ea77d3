"""Snapshots of the state: complete or absent, checked, restored after an unclean stop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dledger.errors import DiskFullError
from dledger.model import TopicConfig
from store.lmdb_env import DATA_FILE
from store.snapshots import NEW, Snapshots, decode_manifest, encode_manifest, install_file
from store.state_keys import UNIT
from store.state_store import StateStore

BOOT = {"id": "boot-1"}


def opened(path: Path, boot: str = "boot-1", snapshots: Snapshots | None = None) -> StateStore:
    restore = snapshots.restore_into if snapshots else None
    return StateStore.open(path, map_bytes=1 << 20, boot_id=lambda: boot, restore=restore)


def add(store: StateStore, count: int) -> None:
    for _ in range(count):
        index = store.applied_index + 1
        with store.write() as batch:
            topic_id = batch.put_topic(TopicConfig(name="t")).topic_id
            _, offset = store.queue_bounds(topic_id, 0)
            batch.append_units(topic_id, 0, offset, UNIT.pack(index * 100, 100, 0))
            batch.set_applied(index, 1)


def take(snapshots: Snapshots, store: StateStore) -> int:
    with store.copying() as copy_to:
        info = snapshots.prepare(copy_to)
    snapshots.commit(info)
    return info.applied_index


def test_an_unclean_stop_restores_the_newest_snapshot(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    store = opened(tmp_path / "state")
    add(store, 10)
    assert take(snapshots, store) == 10
    digest = store.digest()
    add(store, 5)
    store.close(clean=False)
    store = opened(tmp_path / "state", "boot-2", Snapshots(tmp_path / "snapshots"))
    assert store.applied_index == 10
    assert store.digest() == digest
    add(store, 1)
    store.close()


def test_without_an_intact_snapshot_the_state_begins_empty(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    store = opened(tmp_path / "state")
    add(store, 10)
    take(snapshots, store)
    store.close(clean=False)
    newest = snapshots.newest
    assert newest is not None
    path = snapshots.data_file(newest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = opened(tmp_path / "state", "boot-2", Snapshots(tmp_path / "snapshots"))
    assert store.applied_index == 0
    assert sorted(p.name for p in (tmp_path / "state").iterdir() if "new" in p.name) == []
    store.close()


def test_old_snapshots_go_and_an_unfinished_one_never_counts(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    store = opened(tmp_path / "state")
    for index in (3, 6, 9):
        add(store, 3)
        assert take(snapshots, store) == index
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [f"{9:020d}"]
    add(store, 1)
    with store.copying() as copy_to:
        snapshots.prepare(copy_to)
    again = Snapshots(tmp_path / "snapshots")
    assert again.newest is not None
    assert again.newest.applied_index == 9
    assert not (tmp_path / "snapshots" / NEW).exists()
    store.close()


def test_writes_go_on_while_a_copy_is_made(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    store = opened(tmp_path / "state")
    add(store, 100)
    with store.copying() as copy_to:
        infos = []
        thread = threading.Thread(target=lambda: infos.append(snapshots.prepare(copy_to)))
        thread.start()
        add(store, 200)
        thread.join()
    assert 100 <= infos[0].applied_index <= 300
    snapshots.commit(infos[0])
    (tmp_path / "copy").mkdir()
    install_file(snapshots.data_file(infos[0]), tmp_path / "copy", infos[0])
    copy = StateStore(tmp_path / "copy", _environment(tmp_path / "copy"), "boot-1")
    assert copy.applied_index == infos[0].applied_index
    copy.close(clean=False)
    store.close()


def _environment(path: Path):  # type: ignore[no-untyped-def]
    from store.lmdb_env import LmdbEnvironment
    from store.state_batch import DATABASE_NAMES

    return LmdbEnvironment(
        path, database_names=DATABASE_NAMES, map_bytes=1 << 20, map_bytes_max=1 << 30
    )


def test_a_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")

    def full(directory: Path) -> None:
        (directory / DATA_FILE).write_bytes(b"half")
        raise DiskFullError("full")

    with pytest.raises(DiskFullError):
        snapshots.prepare(full)
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert snapshots.newest is None


def test_manifests_are_checked(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    store = opened(tmp_path / "state")
    add(store, 1)
    take(snapshots, store)
    store.close()
    assert snapshots.newest is not None
    data = encode_manifest(snapshots.newest)
    assert decode_manifest(data) == snapshots.newest
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert decode_manifest(bytes(damaged)) is None
    assert decode_manifest(b"") is None
