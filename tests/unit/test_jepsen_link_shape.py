"""What a bad link does to frames."""

from __future__ import annotations

import random

from jepsen_tests.hosts.link_shape import LinkShape, ShapedLink, is_tcp_payload

SEED = 11


def frame(number: int, *, protocol: int = 6) -> bytes:
    head = bytes(12) + b"\x08\x00" + bytes(9) + bytes((protocol,)) + bytes(30)
    return head + number.to_bytes(40, "big")


def shaped(shape: LinkShape, count: int = 1000) -> tuple[ShapedLink, list[bytes]]:
    link = ShapedLink(shape, random.Random(SEED))
    out: list[bytes] = []
    for number in range(count):
        now = number * 0.001
        link.put(frame(number), now)
        out += link.take(now)
    return link, out + link.drain()


def test_a_good_link_changes_nothing() -> None:
    link, out = shaped(LinkShape())
    assert out == [frame(number) for number in range(1000)]
    assert link.counts == {"seen": 1000}


def test_delay_and_jitter_keep_the_order() -> None:
    link = ShapedLink(LinkShape(delay_ms=50, jitter_ms=20), random.Random(SEED))
    for number in range(100):
        link.put(frame(number), 1.0)
    assert link.take(1.029) == []
    due = link.next_due()
    assert due is not None and 1.03 <= due <= 1.07
    assert link.take(1.0701) == [frame(number) for number in range(100)]
    assert link.next_due() is None
    assert link.counts["delayed"] == 100


def test_loss_duplicates_and_overtaking_happen_as_often_as_asked() -> None:
    link, out = shaped(LinkShape(delay_ms=10, loss=0.2, duplicate=0.1, reorder=0.1))
    assert 150 < link.counts["lost"] < 250
    assert 50 < link.counts["duplicated"] < 120
    assert 50 < link.counts["overtook"] < 120
    assert len(out) == 1000 - link.counts["lost"] + link.counts["duplicated"]
    assert out != sorted(out)


def test_damage_touches_one_bit_of_the_payload_of_tcp_only() -> None:
    link, out = shaped(LinkShape(corrupt=1.0), count=50)
    assert link.counts["corrupted"] == 50
    for number, found in enumerate(out):
        original = frame(number)
        different = [a ^ b for a, b in zip(found, original, strict=True)]
        assert sum(byte.bit_count() for byte in different) == 1
        assert not any(different[:54])
    assert not is_tcp_payload(frame(1, protocol=17))
    assert not is_tcp_payload(frame(1)[:60])


def test_equal_seeds_give_equal_fates() -> None:
    shape = LinkShape(delay_ms=5, jitter_ms=5, loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1)
    assert shaped(shape)[1] == shaped(shape)[1]


def test_a_link_holds_only_so_many_frames(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("jepsen_tests.hosts.link_shape.QUEUED_MAX", 10)
    link = ShapedLink(LinkShape(delay_ms=100), random.Random(SEED))
    for number in range(15):
        link.put(frame(number), 0.0)
    assert link.counts["overflowed"] == 5
    assert len(link.drain()) == 10
