"""Apache's servers are started again when they do not come up, and only then."""

import pytest

from interop.apache.servers import StartError, until_started


def test_a_start_is_tried_three_times() -> None:
    attempts: list[int] = []

    def start(good_from: int) -> None:
        attempts.append(good_from)
        if len(attempts) < good_from:
            raise StartError("port taken")

    until_started(lambda: start(3))
    assert len(attempts) == 3
    attempts.clear()
    with pytest.raises(StartError, match="port taken"):
        until_started(lambda: start(4))
    assert len(attempts) == 3


def test_anything_else_is_not_tried_again() -> None:
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        until_started(start)
    assert len(attempts) == 1
