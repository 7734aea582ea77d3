"""What the CommitLog believes of damaged files: torn tails are cut, damage is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dledger.errors import Corruption, CorruptRecordError
from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.mark_file import FILE_NAME as MARK_NAME
from store.mark_file import DurableMark
from store.record import HEADER_BYTES, encode_record
from store.segment import segment_name
from store.simulated_files import SimulatedFileSystem
from store.sync_worker import ManualSyncWorker
from store.verify import verify_directory

CONFIG = StoreConfig(segment_bytes=64 * KIB, disk_free_bytes_min=0)
LOG = Path("/log")
SIZES = [0, 1, 10, 100, 37]
SYNCED = 3


def open_log(path: Path, fs: SimulatedFileSystem | None = None) -> CommitLog:
    return CommitLog.open(path, CONFIG, fs, sync_worker=ManualSyncWorker())


def bodies(log: CommitLog) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < log.last_index:
        found += [bytes(e.body) for e in log.read_entries(len(found) + 1, 100, 1 << 30)]
    return found


def body_of(index: int, size: int) -> bytes:
    return bytes((index * 31 + place) % 251 + 1 for place in range(size))


BODIES = [body_of(index, size) for index, size in enumerate(SIZES, 1)]
STARTS = [sum(HEADER_BYTES + size for size in SIZES[:place]) for place in range(len(SIZES) + 1)]


def half_synced() -> SimulatedFileSystem:
    """Five records, three of them known to be durable, and then the process died."""
    fs = SimulatedFileSystem()
    log = open_log(LOG, fs)
    for index, body in enumerate(BODIES, 1):
        log.append(index, 1, body)
        if index == SYNCED:
            log.sync()
    return fs.process_death()


def damaged(position: int, replacement: bytes) -> SimulatedFileSystem:
    fs = half_synced()
    file = fs.open(LOG / segment_name(0))
    fs.write(file, position, [replacement])
    fs.sync(file)
    fs.close(file)
    return fs


def expect_refusal(fs: SimulatedFileSystem, offset: int) -> CorruptRecordError:
    with pytest.raises(CorruptRecordError) as caught:
        open_log(LOG, fs)
    assert caught.value.physical_offset == offset
    assert caught.value.path == str(LOG / segment_name(0))
    assert "must be rebuilt" in str(caught.value)
    with pytest.raises(CorruptRecordError):  # and nothing was repaired on the way
        open_log(LOG, fs)
    report = verify_directory(LOG, CONFIG, fs)
    assert report.problem is not None and report.problem.physical_offset == offset
    return caught.value


def test_all_written_records_survive_the_process() -> None:
    assert bodies(open_log(LOG, half_synced())) == BODIES


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x44"], ids=["zeros", "ones", "garbage"])
def test_the_tail_cut_at_every_byte(fill: bytes) -> None:
    """Above the mark a prefix is recovered; below it the log is refused."""
    for cut in range(STARTS[-1]):
        fs = damaged(cut, fill * (STARTS[-1] - cut))
        whole = max(place for place in range(len(STARTS)) if STARTS[place] <= cut)
        if whole < SYNCED:
            expect_refusal(fs, STARTS[whole])
            continue
        log = open_log(LOG, fs)
        assert bodies(log) == BODIES[:whole], cut
        log.append(whole + 1, 2, b"new")
        log.close()
        assert bodies(open_log(LOG, fs)) == [*BODIES[:whole], b"new"]


def test_the_file_cut_at_every_byte(tmp_path: Path) -> None:
    for cut in range(STARTS[-1] + 1):
        fs = half_synced()
        file = fs.open(LOG / segment_name(0))
        fs.truncate(file, cut)
        whole = max(place for place in range(len(STARTS)) if STARTS[place] <= cut)
        if whole < SYNCED:
            expect_refusal(fs, STARTS[whole])
        else:
            assert bodies(open_log(LOG, fs)) == BODIES[:whole]


def test_every_bit_flipped() -> None:
    """A flipped bit is never served: refused if it was synced, else cut with what follows."""
    for position in range(STARTS[-1]):
        whole = max(place for place in range(len(STARTS)) if STARTS[place] <= position)
        for bit in range(8) if position < STARTS[2] else (position % 8,):
            fs = half_synced()
            fs.flip_bit(LOG / segment_name(0), position, bit)
            if whole < SYNCED:
                expect_refusal(fs, STARTS[whole])
            else:
                assert bodies(open_log(LOG, fs)) == BODIES[:whole]


@pytest.mark.parametrize("whole", range(5))
def test_without_a_mark_a_valid_record_behind_decides(whole: int) -> None:
    fs = damaged(STARTS[whole] + 9, b"\xee")
    fs.remove(LOG / MARK_NAME)
    if whole < 4:
        expect_refusal(fs, STARTS[whole])
    else:
        assert bodies(open_log(LOG, fs)) == BODIES[:4]


def test_without_a_mark_an_undamaged_log_opens() -> None:
    fs = half_synced()
    fs.remove(LOG / MARK_NAME)
    log = open_log(LOG, fs)
    assert bodies(log) == BODIES
    log.close()
    assert DurableMark.peek(fs, LOG) == STARTS[-1]


@pytest.mark.parametrize("slot", [0, 1])
def test_a_damaged_mark_slot_is_ignored(slot: int) -> None:
    fs = half_synced()
    fs.flip_bit(LOG / MARK_NAME, slot * 4096 + 17)
    assert bodies(open_log(LOG, fs)) == BODIES


def test_a_copy_of_records_within_a_body_is_no_record() -> None:
    """Without a mark the search must not take a log that was sent as a message for our own."""
    inner = b"".join(encode_record(offset, 1, 1, b"x") for offset in (0, 41, 82, 500))
    fs = SimulatedFileSystem()
    log = open_log(LOG, fs)
    log.append(1, 1, b"first")
    end = log.offset_end
    log.append(2, 1, inner)
    log.close()
    fs.remove(LOG / MARK_NAME)
    fs.flip_bit(LOG / segment_name(0), end + 8)
    assert bodies(open_log(LOG, fs)) == [b"first"]


def test_what_was_cut_never_comes_back() -> None:
    """A valid record behind the cut, just where the next would end, is not taken for real."""
    fs = damaged(STARTS[3] + 5, b"\xff")  # record 4 torn, record 5 valid
    log = open_log(LOG, fs)
    assert log.last_index == 3
    log.append(4, 1, bytes(SIZES[3]))  # as long as the torn one
    fs = fs.process_death()
    log = open_log(LOG, fs)
    assert bodies(log) == [*BODIES[:3], bytes(SIZES[3])]
    assert not any(fs.content(LOG / segment_name(0))[STARTS[4] :])


@pytest.mark.parametrize(
    ("position", "data", "reason"),
    [
        pytest.param(0, b"X", Corruption.BAD_MAGIC, id="magic"),
        pytest.param(0, b"\0\0\0\0", Corruption.BAD_MAGIC, id="blank"),
        pytest.param(4, b"\xff", Corruption.BAD_CHECKSUM, id="checksum"),
        pytest.param(8, b"\x7f", Corruption.BAD_LENGTH, id="length beyond the limit"),
        pytest.param(9, b"\x20", Corruption.TRUNCATED_BODY, id="length beyond the file"),
        pytest.param(16, encode_record(1, 1, 1, b"")[16:24], Corruption.BAD_CHECKSUM, id="offset"),
        pytest.param(0, encode_record(41, 1, 1, b""), Corruption.BAD_SEQUENCE, id="moved"),
        pytest.param(0, encode_record(0, 0, 1, b""), Corruption.BAD_SEQUENCE, id="index zero"),
    ],
)
def test_the_reason_is_told(position: int, data: bytes, reason: Corruption) -> None:
    assert expect_refusal(damaged(position, data), 0).reason is reason


@pytest.fixture(scope="module")
def many_segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log")
    log = CommitLog.open(path, CONFIG, sync_worker=ManualSyncWorker())
    for index in range(1, 301):
        log.append(index, 1 + index // 100, body_of(index, 1000))
    log.close()
    return path


@pytest.fixture
def copy(many_segments: Path, tmp_path: Path) -> Path:
    shutil.copytree(many_segments, tmp_path / "log")
    return tmp_path / "log"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def segments_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.name.isdigit())


def test_damage_in_a_sealed_segment_is_found_when_read(copy: Path) -> None:
    """Opening does not read sealed segments, so that its time does not depend on the log."""
    flip(segments_of(copy)[1], 5 * 1040 + 500)
    log = CommitLog.open(copy, CONFIG, sync_worker=ManualSyncWorker())
    base = int(segments_of(copy)[1].name)
    bad = base // 1040 + 1 + 5
    assert log.read_entries(bad - 1, 1, 1)[0].body == body_of(bad - 1, 1000)
    for read in (
        lambda: log.read_entries(bad, 1, 1),
        lambda: log.read_records(bad - 2, 10_000),
        lambda: log.read((bad - 1) * 1040 + 50, 10),
    ):
        with pytest.raises(CorruptRecordError) as caught:
            read()
        assert caught.value.physical_offset == base + 5 * 1040
    assert log.read_entries(bad + 1, 1, 1)[0].body == body_of(bad + 1, 1000)
    report = log.verify()
    assert report.problem is not None
    assert report.problem.physical_offset == base + 5 * 1040
    assert report.problem.reason is Corruption.BAD_CHECKSUM
    assert report.record_count == bad - 1
    log.close()


def test_damage_in_the_newest_segment_is_refused(copy: Path) -> None:
    newest = segments_of(copy)[-1]
    flip(newest, 3 * 1040 + 1)
    with pytest.raises(CorruptRecordError) as caught:
        CommitLog.open(copy, CONFIG)
    assert caught.value.path == str(newest)
    assert caught.value.physical_offset == int(newest.name) + 3 * 1040


@pytest.mark.parametrize("which", [1, 3, -1])
def test_a_missing_segment_is_refused(copy: Path, which: int) -> None:
    segments_of(copy)[which].unlink()
    with pytest.raises(CorruptRecordError):
        CommitLog.open(copy, CONFIG)
    assert verify_directory(copy, CONFIG).problem is not None


def test_all_segments_missing_is_refused(copy: Path) -> None:
    for path in segments_of(copy):
        path.unlink()
    with pytest.raises(CorruptRecordError) as caught:
        CommitLog.open(copy, CONFIG)
    assert caught.value.reason is Corruption.MISSING_SEGMENT


def test_a_cut_sealed_segment_is_refused(copy: Path) -> None:
    victim = segments_of(copy)[2]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CorruptRecordError) as caught:
        CommitLog.open(copy, CONFIG)
    assert caught.value.path == str(victim)


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "short", "foreign"])
def test_an_index_file_is_only_a_convenience(copy: Path, damage: str) -> None:
    log = CommitLog.open(copy, CONFIG, sync_worker=ManualSyncWorker())
    assert log.read_entries(70, 1, 1)[0].body == body_of(70, 1000)
    log.close()
    index = Path(f"{segments_of(copy)[1]}.index")
    before = index.read_bytes()
    if damage == "missing":
        index.unlink()
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "flipped":
        flip(index, 60)
    elif damage == "short":
        index.write_bytes(before[:-4])
    else:
        index.write_bytes(Path(f"{segments_of(copy)[2]}.index").read_bytes())
    log = CommitLog.open(copy, CONFIG, sync_worker=ManualSyncWorker())
    assert [log.read_entries(i, 1, 1)[0].body for i in range(1, 301)] == [
        body_of(i, 1000) for i in range(1, 301)
    ]
    assert index.read_bytes() == before
    log.close()


def test_foreign_files_are_left_alone(copy: Path) -> None:
    (copy / "notes.txt").write_text("keep me")
    (copy / f"{segment_name(777)}.index").write_text("orphan")
    (copy / f"{segment_name(0)}.index.tmp").write_text("half made")
    CommitLog.open(copy, CONFIG, sync_worker=ManualSyncWorker()).close()
    assert (copy / "notes.txt").read_text() == "keep me"
    assert not (copy / f"{segment_name(777)}.index").exists()
    assert not (copy / f"{segment_name(0)}.index.tmp").exists()


def test_verify_reports_progress_and_a_torn_tail(copy: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_directory(copy, CONFIG, progress=lambda done, total: seen.append((done, total)))
    assert report.problem is None and report.torn_tail_at is None
    assert (report.record_count, report.size_bytes) == (300, 300 * 1040)
    assert len(seen) == len(segments_of(copy)) and seen == sorted(seen)
    newest = segments_of(copy)[-1]
    with newest.open("r+b") as file:
        file.seek(300 * 1040 - int(newest.name))
        file.write(b"half a record")
    report = verify_directory(copy, CONFIG)
    assert report.problem is None and report.torn_tail_at == 300 * 1040


def test_a_damaged_vote_is_refused(copy: Path) -> None:
    log = CommitLog.open(copy, CONFIG, sync_worker=ManualSyncWorker())
    log.save_vote(12, "broker-a-2")
    log.close()
    vote = copy / "vote"
    good = vote.read_bytes()
    for position in range(18 + len("broker-a-2")):
        flip(vote, position)
        with pytest.raises(CorruptRecordError, match="vote"):
            CommitLog.open(copy, CONFIG)
        vote.write_bytes(good)
    vote.write_bytes(good[:27])
    with pytest.raises(CorruptRecordError):
        CommitLog.open(copy, CONFIG)
