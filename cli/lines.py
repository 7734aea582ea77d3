"""Splits a stream of bytes into lines with a bound on each: pure."""

from __future__ import annotations


class LineSplitter:
    """Turns chunks into lines without their newline.

    A line longer than the limit comes as `None`, in its place: it is never held in memory.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self._limit = line_bytes_max
        self._carry = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Takes the next chunk; returns the lines that it completes."""
        if b"\n" not in data:
            self._keep(data)
            return []
        first, *middle = data.split(b"\n")
        rest = middle.pop()
        self._keep(first)
        lines: list[bytes | None] = [self._take()]
        limit = self._limit
        lines.extend(line if len(line) <= limit else None for line in middle)
        self._keep(rest)
        return lines

    def finish(self) -> list[bytes | None]:
        """Returns the last line if it has no newline."""
        return [self._take()] if self._carry or self._too_long else []

    def _keep(self, data: bytes) -> None:
        if len(self._carry) + len(data) > self._limit:
            self._too_long = True
            self._carry.clear()
        elif not self._too_long:
            self._carry += data

    def _take(self) -> bytes | None:
        line = None if self._too_long else bytes(self._carry)
        self._carry.clear()
        self._too_long = False
        return line


class LineSet:
    """Numbers of lines, kept as half-open ranges, of which only so many are remembered."""

    def __init__(self, ranges_max: int = 1000) -> None:
        self._ranges_max = ranges_max
        self._ranges: list[list[int]] = []
        self.count = 0
        self.is_complete = True

    def add(self, number: int) -> None:
        """Adds a line number; ascending numbers make long ranges."""
        self.count += 1
        if self._ranges and self._ranges[-1][1] == number:
            self._ranges[-1][1] = number + 1
        elif len(self._ranges) < self._ranges_max:
            self._ranges.append([number, number + 1])
        else:
            self.is_complete = False

    def ranges(self) -> list[list[int]]:
        """Returns the ranges `[start, stop)`."""
        return [list(pair) for pair in self._ranges]
