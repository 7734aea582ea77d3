"""Broker groups to leave alone for a while because they were slow. Pure.

Only for messages that any queue may take: a group whose disk crawls, or whose network loses
packets, still answers, and would hold up a share of everything. A group without a leader is
avoided anyway, and used again as soon as one is found; that is not the matter of this.

Source: the idea of RocketMQ's LatencyFaultTolerance. Its waits are in minutes, because a client
there learns only by trying; ours are shorter.
"""

from __future__ import annotations

# Seconds an answer took, at least -> seconds the group is left alone from then on.
_WAITS_S = ((15.0, 30.0), (3.0, 10.0), (2.0, 6.0), (1.0, 5.0), (0.55, 2.0))
NO_ANSWER_S = 3.0  # what counts as the time of an answer that did not come


class Isolation:
    """What one producer found out about groups. Knows no clock: the time is an argument."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Isolation {sorted(self._until)}>"

    def note(self, broker_name: str, took_s: float, now_s: float) -> None:
        """Takes note of how long a group's leader took to answer.

        A quick answer ends the isolation: the group was asked because of a key, say, and is well.
        """
        wait_s = isolation_s(took_s)
        if wait_s:
            self._until[broker_name] = now_s + wait_s
        else:
            self._until.pop(broker_name, None)

    def is_free(self, broker_name: str, now_s: float) -> bool:
        """Whether nothing speaks against a group."""
        until = self._until.get(broker_name)
        return until is None or now_s >= until


def isolation_s(took_s: float) -> float:
    """Returns for how long a group that took that long is left alone; 0: not at all."""
    return next((wait_s for least_s, wait_s in _WAITS_S if took_s >= least_s), 0.0)
