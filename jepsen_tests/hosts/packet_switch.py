"""A process that carries frames for hosts with bad links: `python -P -m ...packet_switch SEED`.

It runs in the namespace of the bridge. For a host whose link turns bad, the bridge port is taken
out and a detour put in, with this process in its middle:

    host e0 ──── pN  ▒ this process ▒  iN ──── xN  bridge

Standard input has one JSON object a line, standard output one answer for each:

    {"ports": ["p1"], "links": [["p1", "10.77.0.2", {"delay_ms": 20, ...}], ...]}
    {"counts": {"p1 10.77.0.2": {"seen": 812, "delayed": 812}, ...}}

`ports` and `links` replace what was before; frames under way leave at once. Without `links` the
counts so far are returned. Ends when its standard input does. IPv4 only: ARP is never harmed.
"""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import sys
import time
from collections import Counter
from typing import Any, Final

from jepsen_tests.hosts.link_shape import LinkShape, ShapedLink

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_IGNORE_OUTGOING: Final = 23
_FRAME_MAX: Final = 65_536
_BURST: Final = 64
_BUFFER_BYTES: Final = 8 * 1024 * 1024


def detour_port(port: str) -> str:
    """Returns the name of the bridge's port in place of `pN` while the detour is in use."""
    return f"x{port[1:]}"


def inner_port(port: str) -> str:
    """Returns the name of the detour's other end, where this process puts frames."""
    return f"i{port[1:]}"


def _open(name: str) -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setblocking(False)
    found.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    found.bind((name, _ETH_P_ALL))
    return found


class PacketSwitch:
    """Carries frames between `pN` and `iN` of each host, badly where asked."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._turn = 0
        self._selector = selectors.DefaultSelector()
        self._outer: dict[str, socket.socket] = {}
        self._inner: dict[str, socket.socket] = {}
        self._links: dict[tuple[str, bytes], ShapedLink] = {}
        self.counts: dict[str, Counter[str]] = {}

    def configure(self, ports: list[str], links: list[list[Any]]) -> None:
        """Replaces the ports carried and the links that are bad."""
        self._forget()
        self._turn += 1
        for port in ports:
            for kind, sockets in (("out", self._outer), ("in", self._inner)):
                found = _open(port if kind == "out" else inner_port(port))
                sockets[port] = found
                self._selector.register(found, selectors.EVENT_READ, (kind, port))
        for port, address, shape in links:
            # A seed of each link's own: the fate of its frames does not hang on other traffic.
            chance = random.Random(f"{self._seed}-{self._turn}-{port}-{address}")
            link = ShapedLink(LinkShape.from_json(shape), chance)
            self._links[port, socket.inet_aton(address)] = link

    def read_counts(self) -> dict[str, Counter[str]]:
        """Returns what has happened on each bad link since the start."""
        total = {name: Counter(counts) for name, counts in self.counts.items()}
        for (port, address), link in self._links.items():
            name = f"{port} {socket.inet_ntoa(address)}"
            total.setdefault(name, Counter()).update(link.counts)
        return total

    def watch(self, file: Any) -> None:
        """Waits for a command as well."""
        self._selector.register(file, selectors.EVENT_READ, None)

    def turn(self) -> bool:
        """Carries what is there and what is due; returns whether a command waits."""
        dues = [due for link in self._links.values() if (due := link.next_due()) is not None]
        timeout_s = max(0.0, min(dues) - time.monotonic()) if dues else None
        commanded = False
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                commanded = True
                continue
            kind, port = key.data
            self._carry(kind, port)
        now = time.monotonic()
        for (port, _), link in self._links.items():
            for frame in link.take(now):
                _send(self._inner[port], frame)
        return commanded

    def _carry(self, kind: str, port: str) -> None:
        source = self._outer[port] if kind == "out" else self._inner[port]
        target = self._inner[port] if kind == "out" else self._outer[port]
        for _ in range(_BURST):
            try:
                frame = source.recv(_FRAME_MAX)
            except BlockingIOError:
                return
            except OSError:  # the interface went down or away; so will we
                return
            link = None
            if kind == "out" and frame[12:14] == b"\x08\x00":
                link = self._links.get((port, frame[30:34]))
            if link is None:
                _send(target, frame)
            else:
                link.put(frame, time.monotonic())

    def _forget(self) -> None:
        self.counts = self.read_counts()
        for (port, _), link in self._links.items():
            for frame in link.drain():
                _send(self._inner[port], frame)
        for found in (*self._outer.values(), *self._inner.values()):
            self._selector.unregister(found)
            found.close()
        self._outer.clear()
        self._inner.clear()
        self._links.clear()


def _send(target: socket.socket, frame: bytes) -> None:
    # A full queue or a vanished interface loses the frame, as on any wire.
    with contextlib.suppress(OSError):
        target.send(frame)


def main() -> int:
    """Serves commands until standard input ends."""
    switch = PacketSwitch(sys.argv[1])
    switch.watch(sys.stdin)
    while True:
        if not switch.turn():
            continue
        line = sys.stdin.buffer.readline()  # one at a time: the next comes after the answer
        if not line:
            return 0
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "links" in command:
                switch.configure(command["ports"], command["links"])
            answer["counts"] = switch.read_counts()
        except OSError as error:
            answer["error"] = str(error)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
