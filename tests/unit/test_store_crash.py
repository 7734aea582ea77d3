"""Crashes of the CommitLog on a simulated disk: nothing that was durable is ever lost.

Each test runs a script, stops it at a point, lets the disk lose power (or the process die), opens
the log again and compares with a model of what had been written and synced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.simulated_files import PowerLossError, SimulatedFileSystem
from store.sync_worker import ManualSyncWorker

DIRECTORY = Path("/log")
CONFIG = StoreConfig(segment_bytes=64 * KIB, disk_free_bytes_min=0, tail_cache_bytes=20_000)

Entry = tuple[int, int, bytes]


@dataclass
class Model:
    """What the log must hold after a crash."""

    entries: list[Entry] = field(default_factory=list)
    durable: int = 0  # that many entries must survive
    also: list[Entry] = field(default_factory=list)  # entries that a truncation was dropping
    votes: set[tuple[int, str | None]] = field(default_factory=lambda: {(0, None)})


class Run:
    """One life of a log, with its model."""

    def __init__(self, fs: SimulatedFileSystem, model: Model) -> None:
        self.fs = fs
        self.model = model
        self.worker = ManualSyncWorker()
        self.log = CommitLog.open(DIRECTORY, CONFIG, fs, sync_worker=self.worker)
        self.log.subscribe_durable(self._on_durable)
        # Opening makes everything durable that it has found.
        model.durable = len(model.entries)

    def _on_durable(self, index: int) -> None:
        assert index <= len(self.model.entries)
        self.model.durable = max(self.model.durable, index)

    def append(self, count: int, size: int, term: int) -> None:
        for _ in range(count):
            index = len(self.model.entries) + 1
            body = Random(index * 1000 + term).randbytes(size)
            self.model.entries.append((index, term, body))
            self.log.append(index, term, body)

    def sync(self) -> None:
        self.log.request_sync()
        self.worker.run_pending()
        assert self.log.durable_index == len(self.model.entries) == self.model.durable

    def truncate(self, index: int) -> None:
        model = self.model
        model.also = list(model.entries)
        model.durable = min(model.durable, index - 1)
        del model.entries[index - 1 :]
        self.log.truncate_from(index)
        model.also = []
        self.worker.run_pending()
        assert self.log.durable_index == len(model.entries) == model.durable

    def vote(self, term: int, name: str | None) -> None:
        self.model.votes.add((term, name))
        self.log.save_vote(term, name)
        self.model.votes = {(term, name)}


def read_all(log: CommitLog) -> list[Entry]:
    found: list[Entry] = []
    index = log.first_index
    while index <= log.last_index:
        entries = log.read_entries(index, 1000, 1 << 30)
        found += [(entry.index, entry.term, bytes(entry.body)) for entry in entries]
        index = entries[-1].index + 1
    return found


def check_survivors(model: Model, log: CommitLog, *, all_written: bool = False) -> None:
    found = read_all(log)
    assert len(found) == log.last_index == log.durable_index
    assert len(found) >= model.durable, f"durable {model.durable}, found {len(found)}"
    is_prefix = found == model.entries[: len(found)] or found == model.also[: len(found)]
    assert is_prefix, f"{[e[:2] for e in found]} is no prefix of {[e[:2] for e in model.entries]}"
    if all_written and not model.also:
        assert len(found) >= len(model.entries) - 1  # the last write may not have begun
    vote = (log.term, log.voted_for)
    if log.voted_for is not None or log.term > log.last_term:
        assert vote in model.votes, f"{vote} not in {model.votes}"
    model.entries = found
    model.also = []
    model.votes = {vote}


def script(run: Run) -> None:
    run.vote(1, "a")
    run.append(3, 900, 1)
    run.sync()
    run.append(2, 20_000, 1)
    run.append(2, 700, 1)
    run.sync()
    run.append(4, 17_000, 1)  # rolls, not synced at once
    run.vote(2, None)
    run.append(5, 3_000, 2)
    run.sync()
    run.append(3, 30_000, 2)
    run.truncate(14)  # within the newest segments
    run.append(2, 3_000, 3)
    run.sync()
    run.append(1, 100, 3)
    run.truncate(4)  # back into the first one
    run.append(4, 25_000, 4)
    run.sync()
    run.append(2, 300, 4)
    run.worker.run_idle()


def run_until_crash(
    fs: SimulatedFileSystem, model: Model, steps: Callable[[Run], None], crash_at: int
) -> bool:
    """Returns whether the crash came; `fs` is to be asked for what is left of it."""

    def on_call(operation: str, path: Path) -> None:
        if fs.calls >= crash_at:
            raise PowerLossError

    fs.on_call = on_call
    with contextlib.suppress(PowerLossError):
        steps(Run(fs, model))
        return False
    return True


def total_calls(steps: Callable[[Run], None]) -> int:
    fs = SimulatedFileSystem()
    steps(Run(fs, Model()))
    return fs.calls


def open_after(fs: SimulatedFileSystem) -> CommitLog:
    return CommitLog.open(DIRECTORY, CONFIG, fs, sync_worker=ManualSyncWorker())


@pytest.mark.parametrize("mode", ["power", "process"])
def test_crash_before_each_call(mode: str) -> None:
    calls = total_calls(script)
    assert calls > 60
    random = Random(4711)
    for crash_at in range(1, calls + 2):
        for _ in range(5 if mode == "power" else 1):
            fs, model = SimulatedFileSystem(), Model()
            run_until_crash(fs, model, script, crash_at)
            after = fs.power_loss(random) if mode == "power" else fs.process_death()
            log = open_after(after)
            check_survivors(model, log, all_written=mode == "process")
            # Life goes on: what is written now must not meet remains of the former tail.
            log.close()
            second = Run(after, model)
            second.append(3, 900, 9)
            second.sync()
            log = open_after(after.power_loss(random))
            check_survivors(model, log)
            log.close()


def test_crash_during_recovery() -> None:
    random = Random(99)
    calls = total_calls(script)
    for crash_at in range(1, calls + 2, 3):
        fs, model = SimulatedFileSystem(), Model()
        run_until_crash(fs, model, script, crash_at)
        left = fs.power_loss(random)
        for second_at in range(1, 40):
            # The same remains again, as a copy: all is durable after a loss of power.
            again = left.power_loss(random)

            def on_call(
                operation: str, path: Path, again: SimulatedFileSystem = again, at: int = second_at
            ) -> None:
                if again.calls >= at:
                    raise PowerLossError

            again.on_call = on_call
            crashed = False
            try:
                log = open_after(again)
                log.close()
            except PowerLossError:
                crashed = True
            log = open_after(again.power_loss(random))
            check_survivors(
                Model(list(model.entries), model.durable, list(model.also), set(model.votes)), log
            )
            log.close()
            if not crashed:
                break


def test_a_disk_that_ignores_syncs_is_caught() -> None:
    """Positive control: if syncs do nothing, the checks above must fail."""
    random = Random(5)
    caught = 0
    for _ in range(20):
        fs, model = SimulatedFileSystem(ignores_sync=True), Model()
        run_until_crash(fs, model, script, 1 << 60)
        try:
            log = open_after(fs.power_loss(random))
            check_survivors(model, log)
        except Exception:
            caught += 1
    assert caught >= 10


def test_the_last_unsynced_records_come_back_in_any_order() -> None:
    """A later record may survive where an earlier one is lost: a torn tail, not corruption."""
    random = Random(7)
    seen = set()
    for _ in range(300):
        fs, model = SimulatedFileSystem(), Model()
        run = Run(fs, model)
        run.append(3, 1500, 1)
        run.sync()
        run.append(5, 1500, 1)
        log = open_after(fs.power_loss(random))
        check_survivors(model, log)
        seen.add(log.last_index)
    assert seen == {3, 4, 5, 6, 7, 8}
