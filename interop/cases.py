"""What is tried with every client, and what is said about it: pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERDICTS: Final = ("yes", "no", "absent")

# Case and what the table calls it, in the table's order.
CASES: Final[dict[str, str]] = {
    "send-sync": "Send, waiting for the answer",
    "send-async": "Send with a callback",
    "send-oneway": "Send one-way",
    "send-batch": "Send a batch",
    "consume-push": "Push consumer, two members share the queues",
    "consume-orderly": "Orderly consumer, two members, per key in order",
    "consume-broadcast": "Broadcast",
    "delay-levels": "Delay levels",
    "delay-timers": "Delay by any time",
    "transaction": "Transaction: commit, rollback, check-back",
    "filter-tag": "Tag filter",
    "filter-sql": "SQL filter",
    "retry-dlq": "Retry, then dead letter",
    "reset-offset": "Offsets reset while it consumes",
    "request-reply": "Request and reply",
    "query-id": "Query by message id",
    "query-key": "Query by key",
    "pop": "Pop consumption",
    "leader-killed": "Leader killed while it sends and consumes",
}
# It disturbs all others, and comes last and alone.
KILLING: Final = "leader-killed"
# Not a case of the table: the runner measures from what the program tells.
STANDSTILL: Final = "standstill"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one case.

    Attributes:
        verdict: One of `VERDICTS`; "absent" means that the client has no such thing.
        detail: What was seen, in a few words.
    """

    case: str
    verdict: str
    detail: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.case}: no such verdict: {self.verdict!r}")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One send or one consumed message of a program that is watched.

    Attributes:
        kind: "sent", "failed" or "consumed".
        began_ms: When its send began, by the wall clock.
        ended_ms: When it was acknowledged, failed or consumed.
        broker: Broker name of its queue, "" if unknown.
    """

    kind: str
    began_ms: int
    ended_ms: int
    broker: str = ""


@dataclass(frozen=True, kw_only=True)
class Standstill:
    """How long a client stood still when a leader was killed.

    Attributes:
        send_ms: From the kill to the first acknowledgement of a send begun after it.
        consume_ms: From the kill to the first such message at the consumer; of the killed
            leader's group.
        failed: Sends that the client gave up, as the application saw it.
        last_failure_ms: From the kill to the end of the last of them; 0 if there was none.
    """

    send_ms: int
    consume_ms: int
    failed: int
    last_failure_ms: int


def standstill(
    observations: list[Observation], killed_ms: int, broker: str, quiet_ms: int
) -> Standstill | None:
    """Returns how long a client stood still; `None` as long as that is not over.

    It is over when sends and deliveries go through again, in the group that lost its leader, and
    no send has failed for `quiet_ms`. What was under way at the kill does not count.

    Args:
        observations: In the order of their end.
        killed_ms: When the leader was dead.
        broker: The group that lost its leader.
        quiet_ms: How long no send may have failed.
    """
    after = [one for one in observations if one.began_ms >= killed_ms]
    sent = next((one for one in after if one.kind == "sent"), None)
    consumed = next((o for o in after if o.kind == "consumed" and o.broker == broker), None)
    failures = [one for one in observations if one.kind == "failed" and one.ended_ms >= killed_ms]
    last_failure_ms = failures[-1].ended_ms if failures else killed_ms
    if sent is None or consumed is None or observations[-1].ended_ms < last_failure_ms + quiet_ms:
        return None
    return Standstill(
        send_ms=sent.ended_ms - killed_ms,
        consume_ms=consumed.ended_ms - killed_ms,
        failed=len(failures),
        last_failure_ms=last_failure_ms - killed_ms,
    )
