"""The mark that says whether the LMDB state survived: its bytes, and when it is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.clean_mark import (
    CleanMark,
    decode_mark,
    encode_mark,
    machine_boot_id,
    read_mark,
    write_mark,
)

GOLDEN = b"dledger-state 1\nboot_id abc-1\nclean 0\ncrc 0579a46d\n"


def test_bytes_are_golden() -> None:
    assert encode_mark(CleanMark("abc-1", clean=False)) == GOLDEN
    assert decode_mark(GOLDEN) == CleanMark("abc-1", clean=False)


@pytest.mark.parametrize("mark", [CleanMark("x", clean=True), CleanMark("", clean=False)])
def test_what_is_written_is_read(tmp_path: Path, mark: CleanMark) -> None:
    path = tmp_path / "state.mark"
    assert read_mark(path) is None
    write_mark(path, mark)
    assert read_mark(path) == mark
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.mark"]


@pytest.mark.parametrize("at", range(len(GOLDEN)))
def test_any_flipped_bit_and_any_torn_end_is_noticed(at: int) -> None:
    flipped = bytearray(GOLDEN)
    flipped[at] ^= 1
    assert decode_mark(bytes(flipped)) is None
    assert decode_mark(GOLDEN[:at]) is None


@pytest.mark.parametrize(
    ("mark", "boot_id", "trusted"),
    [
        pytest.param(CleanMark("a", clean=True), "b", True, id="clean"),
        pytest.param(CleanMark("a", clean=False), "a", True, id="killed, same boot"),
        pytest.param(CleanMark("a", clean=False), "b", False, id="machine stopped"),
        pytest.param(CleanMark("", clean=False), "", False, id="boot unknown"),
    ],
)
def test_trust(mark: CleanMark, boot_id: str, trusted: bool) -> None:
    assert mark.trusts(boot_id) is trusted


def test_machine_boot_id_is_stable() -> None:
    assert machine_boot_id() == machine_boot_id()
