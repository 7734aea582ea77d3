from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.lines import LineSet, LineSplitter


def split(chunks: list[bytes], limit: int = 100) -> list[bytes | None]:
    splitter = LineSplitter(limit)
    lines: list[bytes | None] = []
    for chunk in chunks:
        lines.extend(splitter.feed(chunk))
    return lines + splitter.finish()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([b"a\nb\n"], [b"a", b"b"], id="newline at the end"),
        pytest.param([b"a\nb"], [b"a", b"b"], id="no newline at the end"),
        pytest.param([b"\n\na\n"], [b"", b"", b"a"], id="empty lines"),
        pytest.param([b"a", b"b\nc", b"\n"], [b"ab", b"c"], id="across chunks"),
        pytest.param([b"a\r\n"], [b"a\r"], id="carriage return stays"),
        pytest.param([b"12345\n123456\n1\n"], [b"12345", None, b"1"], id="too long"),
        pytest.param([b"123", b"456", b"789\n1\n"], [None, b"1"], id="too long across chunks"),
        pytest.param([b"1\n123", b"456"], [b"1", None], id="too long at the end"),
    ],
)
def test_split(chunks: list[bytes], lines: list[bytes | None]) -> None:
    assert split(chunks, 5) == lines


@given(st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r", b"\n\n"])), st.data())
def test_any_split_of_the_bytes_gives_the_same_lines(
    parts: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = whole.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert split([c for c in chunks if c]) == expected


def test_line_set_joins_neighbours_and_is_bounded() -> None:
    lines = LineSet(ranges_max=2)
    for number in (1, 2, 3, 7, 8, 20):
        lines.add(number)
    assert lines.ranges() == [[1, 4], [7, 9]]
    assert lines.count == 6
    assert not lines.is_complete
