"""K3: one replica of a list, on the Raft library as it is: its own journal and transport.

Run by an interpreter that has a version of it: `python stock_node.py ME PEER,PEER JOURNAL`. Reads
one JSON object a line and answers each with one:

    {"append": value}   {"offset": n} once the library calls it done, else {"error": code}
    {"look": true}      {"leader": address or null, "term": n, "values": [...]}
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated

_ANSWER_S = 2.0


class ReplicatedList(SyncObj):  # type: ignore[misc]
    """A list to which values are appended."""

    def __init__(self, me: str, peers: list[str], journal: str) -> None:
        conf = SyncObjConf(
            journalFile=journal,
            raftMinTimeout=0.4,
            raftMaxTimeout=0.8,
            appendEntriesPeriod=0.05,
            connectionRetryTime=0.2,
            leaderFallbackTimeout=1.5,
        )
        super().__init__(me, peers, conf)
        self.values: list[int] = []

    @replicated  # type: ignore[untyped-decorator]
    def append(self, value: int) -> int:
        """Appends a value; returns its offset."""
        self.values.append(value)
        return len(self.values) - 1


def main() -> None:
    """Answers until standard input ends."""
    me, peers, journal = sys.argv[1:4]
    replica = ReplicatedList(me, peers.split(","), journal)
    for line in sys.stdin:
        question = json.loads(line)
        answer = _append(replica, question["append"]) if "append" in question else _look(replica)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _append(replica: ReplicatedList, value: int) -> dict[str, Any]:
    done = threading.Event()
    found: dict[str, Any] = {"error": "no answer"}

    def answered(result: Any, error: Any) -> None:
        found.clear()
        found.update({"error": error} if error else {"offset": result})
        done.set()

    replica.append(value, callback=answered)
    done.wait(_ANSWER_S)
    return dict(found)


def _look(replica: ReplicatedList) -> dict[str, Any]:
    leader = replica._getLeader()
    term = getattr(replica, "raftCurrentTerm", getattr(replica, "_SyncObj__raftCurrentTerm", 0))
    return {
        "leader": None if leader is None else str(leader),
        "term": term,
        "values": list(replica.values),
    }


if __name__ == "__main__":
    main()
