"""K3: a version of the Raft library that forgets its term and vote when it is restarted.

The scenario needs no broken network: a replica that was away comes back after the others have been
restarted. Their terms began anew, so its older log counts as the newer one, and overwrites theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jepsen_tests.checkers import Verdict, judge_file
from jepsen_tests.history import Append, Fault, HistoryWriter, Meta, Read
from jepsen_tests.hosts.shell import HarnessError

VERSION = "0.3.14"
QUEUE = "list@stock/0"
_NODES = ("stock-0", "stock-1", "stock-2")
_INSTALL_S = 180.0
_LEADER_S = 15.0
_EQUAL_S = 4.0
_TERMS = 3
_VALUES = 10
_PAUSE_S = 0.05


def interpreter(folder: Path) -> Path:
    """Returns an interpreter with that version of the library, made at the first time.

    Raises:
        HarnessError: It cannot be installed.
    """
    home = folder / f"pysyncobj-{VERSION}"
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists():
        steps = (
            [sys.executable, "-m", "venv", str(home)],
            [str(python), "-m", "pip", "install", "--quiet", f"pysyncobj=={VERSION}"],
        )
        for step in steps:
            try:
                subprocess.run(step, check=True, capture_output=True, timeout=_INSTALL_S)
            except (OSError, subprocess.SubprocessError) as error:
                raise HarnessError(f"pysyncobj {VERSION} cannot be installed: {error}") from error
        ready.touch()
    return python


def run_stock(folder: Path, python: Path, say: Callable[[str], None]) -> Verdict:
    """Runs the scenario with an interpreter's version of the library, and judges it.

    Raises:
        HarnessError: The replicas did not come to a leader.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _StockRun(folder, python, say)
    try:
        run.execute()
    finally:
        run.stop()
    return judge_file(folder / "history.jsonl")


class _Node:
    """One replica's process."""

    def __init__(self, python: Path, me: str, peers: Sequence[str], journal: Path) -> None:
        program = Path(__file__).with_name("stock_node.py")
        self._child = subprocess.Popen(
            [str(python), str(program), me, ",".join(peers), str(journal)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a question; without one, an error."""
        child = self._child
        if child.stdin is None or child.stdout is None:
            return {"error": "no pipes"}
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            line = ""
        found: dict[str, Any] = json.loads(line) if line else {"error": "gone"}
        return found

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _StockRun:
    """The scenario."""

    def __init__(self, folder: Path, python: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._python = python
        self._say = say
        self._addresses = dict(zip(_NODES, _free_addresses(len(_NODES)), strict=True))
        self._nodes: dict[str, _Node] = {}
        self._writer = HistoryWriter(folder / "history.jsonl")
        self._next_value = 1
        self._faults = 0

    def execute(self) -> None:
        """Writes in high terms, restarts two in low ones and writes, then lets the third back."""
        self._writer.write(Meta(workload="stock", nodes=list(_NODES), acks_min=_VALUES))
        self._start(*_NODES)
        for _ in range(_TERMS):
            leader = self._leader()
            self._kill(leader)
            self._leader()
            self._start(leader)
        self._append(self._leader(), _VALUES)
        self._wait_equal()
        self._kill(*_NODES)
        away, *others = _NODES
        self._start(*others)
        self._append(self._leader(), _VALUES)
        self._kill(*others)
        self._start(away, others[0])
        self._append(self._leader(), 1)
        self._start(others[1])
        self._append(self._leader(), 1)
        self._wait_equal()
        self._final()

    def stop(self) -> None:
        """Ends everything."""
        for node in self._nodes.values():
            node.kill()
        self._nodes.clear()
        self._writer.close()

    def _start(self, *names: str) -> None:
        for name in names:
            peers = [address for other, address in self._addresses.items() if other != name]
            journal = self._folder / f"{name}.journal"
            self._nodes[name] = _Node(self._python, self._addresses[name], peers, journal)

    def _kill(self, *names: str) -> None:
        self._faults += 1
        fault = Fault(
            id=self._faults,
            name="kill",
            inv=time.monotonic_ns(),
            targets=list(names),
            bit=True,
            proof={"killed": len(names)},
        )
        for name in names:
            self._nodes.pop(name).kill()
        fault.ret = time.monotonic_ns()
        self._writer.write(fault)
        self._say(f"K3 killed {', '.join(names)}")

    def _leader(self) -> str:
        """Returns the leader that all that run agree on."""
        names = {address: name for name, address in self._addresses.items()}
        deadline = time.monotonic() + _LEADER_S
        while time.monotonic() < deadline:
            seen = {node.ask({"look": True}).get("leader") for node in self._nodes.values()}
            leader = names.get(str(seen.pop())) if len(seen) == 1 else None
            if leader in self._nodes:
                return str(leader)
            time.sleep(_PAUSE_S)
        raise HarnessError("the stock library's replicas agree on no leader")

    def _append(self, node: str, count: int) -> None:
        for _ in range(count):
            record = Append(
                process=self._next_value,
                queue=QUEUE,
                value=self._next_value,
                inv=time.monotonic_ns(),
                ret=0,
                status="info",
                node=node,
            )
            self._next_value += 1
            answer = self._nodes[node].ask({"append": record.value})
            record.ret = time.monotonic_ns()
            if "offset" in answer:
                record.status, record.offset = "ok", answer["offset"]
            else:
                record.error = str(answer)
            self._writer.write(record)

    def _wait_equal(self) -> None:
        deadline = time.monotonic() + _EQUAL_S
        while time.monotonic() < deadline:
            seen = [node.ask({"look": True}).get("values") for node in self._nodes.values()]
            if seen[0] and all(values == seen[0] for values in seen):
                return
            time.sleep(_PAUSE_S)

    def _final(self) -> None:
        for name, node in self._nodes.items():
            inv = time.monotonic_ns()
            values = node.ask({"look": True}).get("values", [])
            read = Read(
                process=0,
                queue=QUEUE,
                inv=inv,
                ret=time.monotonic_ns(),
                status="ok",
                max=len(values) + 1,
                values=values,
                end=len(values),
                whole=True,
                final=True,
                node=name,
            )
            self._writer.write(read)


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()
