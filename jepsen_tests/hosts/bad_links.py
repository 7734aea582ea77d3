"""Links between namespaces that delay, repeat, reorder, damage or lose frames, per direction."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.supervisor import server_environment
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.link_shape import LinkShape
from jepsen_tests.hosts.packet_switch import detour_port, inner_port
from jepsen_tests.hosts.shell import HarnessError, run_tool, try_tool

_OFFLOADS = ("tx", "tso", "gso", "gro")
_ANSWER_S = 10.0


class SwitchProcess:
    """The process that carries frames (`packet_switch`), as the harness sees it."""

    def __init__(self, prefix: Sequence[str], seed: str) -> None:
        """Starts it.

        Args:
            prefix: Puts it into the bridge's namespace.
            seed: Of every frame's fate.
        """
        module = "jepsen_tests.hosts.packet_switch"
        self._child = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", module, seed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=server_environment(),
            start_new_session=True,
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Has a command done; returns the answer.

        Raises:
            HarnessError: It could not be done, or the process has ended.
        """
        timer = threading.Timer(_ANSWER_S, self._child.kill)
        timer.start()
        try:
            if self._child.stdin is None or self._child.stdout is None:
                raise HarnessError("the packet switch has no pipes")
            self._child.stdin.write(json.dumps(command).encode() + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError as error:
            raise HarnessError(f"the packet switch: {error}") from error
        finally:
            timer.cancel()
        if not line:
            raise HarnessError(f"the packet switch ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HarnessError(f"the packet switch: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends it."""
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(5.0)

    def _last_words(self) -> str:
        self._child.kill()
        text = self._child.stderr.read().decode(errors="replace") if self._child.stderr else ""
        return text.strip().splitlines()[-1] if text.strip() else "no message"


class BadLinks:
    """Puts hosts behind the switch process for as long as one of their links is bad."""

    def __init__(self, switch: str, namespaces: Iterable[str], clean_up: CleanUp) -> None:
        """Prepares; nothing is started before the first bad link.

        Args:
            switch: Namespace of the bridge `br0`.
            namespaces: Those of all hosts, each with its link `e0`.
            clean_up: Ends the process.
        """
        self._switch = switch
        self._namespaces = list(namespaces)
        self._clean_up = clean_up
        self._process: SwitchProcess | None = None
        self._ports: set[str] = set()

    def set(self, links: Mapping[tuple[str, str], LinkShape], seed: str) -> None:
        """Makes these links bad and all others well.

        Args:
            links: By port of the sender (`pN`) and address of the receiver.
            seed: For the process, if it has not been started yet.

        Raises:
            HarnessError: A step failed.
        """
        ports = {port for port, _ in links}
        if self._process is None:
            if not links:
                return
            self._process = self._start(seed)
        for port in sorted(ports - self._ports):
            self._detour(port)
        shaped = [[port, address, shape.to_json()] for (port, address), shape in links.items()]
        self._process.ask({"ports": sorted(ports), "links": shaped})
        for port in sorted(self._ports - ports):
            self._straighten(port)
        self._ports = ports

    def counts(self) -> Counter[str]:
        """Returns what has happened to frames so far, on all links together."""
        total: Counter[str] = Counter()
        if self._process is not None:
            for counts in self._process.ask({})["counts"].values():
                total.update(counts)
        return total

    def _start(self, seed: str) -> SwitchProcess:
        for namespace in self._namespaces:
            # Frames must be whole and carry real checksums: nobody completes them on this way.
            words = [word for name in _OFFLOADS for word in (name, "off")]
            run_tool(["ip", "netns", "exec", namespace, "ethtool", "-K", "e0", *words])
        prefix = ("nsenter", f"--net={Path('/run/netns') / self._switch}", "--")
        process = SwitchProcess(prefix, seed)
        self._clean_up.add("packet switch", process.close)
        return process

    def _detour(self, port: str) -> None:
        outer, inner = detour_port(port), inner_port(port)
        steps = [
            f"link add {outer} type veth peer name {inner}",
            f"link set {inner} up",
            f"link set {port} nomaster",
            f"link set {outer} master br0 up",
        ]
        run_tool(["ip", "-n", self._switch, "-batch", "-"], stdin="\n".join(steps) + "\n")

    def _straighten(self, port: str) -> None:
        try_tool(["ip", "-n", self._switch, "link", "del", detour_port(port)])
        run_tool(["ip", "-n", self._switch, "link", "set", port, "master", "br0"])
