"""What to do after a failed attempt: a pure rule over the error.

An operation is a row of attempts. Each attempt ends in success, in a *definite* failure (it had
and will have no effect) or in an *indefinite* one (it may still take effect: the connection broke
after the bytes were written, no answer came, or the broker says that it does not know). Once one
attempt was indefinite, the whole operation cannot be called failed any more.

Source:
    The retryable codes are those of RocketMQ's producer. We differ in the limit: as long as a
    group has no leader, asking again is what ends a fail-over quickly, so those attempts are
    limited by the deadline alone; refusals by a serving broker are limited by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dledger.codes import ResponseCode
from dledger.errors import (
    BrokerResponseError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    FlowControlError,
    NotLeaderError,
    RequestTimeoutError,
)

NO_BUYER_ID = 204
NOT_IN_CURRENT_UNIT = 205
GO_AWAY = 1500

# A serving broker refused; another queue or broker may not.
REFUSED_HERE = frozenset(
    {
        ResponseCode.TOPIC_NOT_EXIST,
        ResponseCode.NO_PERMISSION,
        ResponseCode.SYSTEM_ERROR,
        NO_BUYER_ID,
        NOT_IN_CURRENT_UNIT,
        GO_AWAY,
    }
)
BUSY = frozenset({ResponseCode.SYSTEM_BUSY, ResponseCode.FLOW_CONTROL})


class Step(Enum):
    """What to do next."""

    FIND_LEADER = "ask who leads, then again"
    WAIT = "again at the same place after a pause"
    ELSEWHERE = "again, if another place is left"
    GIVE_UP = "tell the caller"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt failed and what to do.

    Attributes:
        step: What to do.
        definite: This attempt certainly had and will have no effect.
    """

    step: Step
    definite: bool


def judge(error: DLedgerError) -> Verdict:
    """Returns what to do after an attempt ended with `error`. Deadlines are the caller's."""
    match error:
        case ConnectFailedError() | NotLeaderError():
            return Verdict(Step.FIND_LEADER, definite=True)
        case ConnectionLostError() | RequestTimeoutError():
            return Verdict(Step.FIND_LEADER, definite=False)
        case BrokerResponseError(code=ResponseCode.SERVICE_NOT_AVAILABLE):
            return Verdict(Step.FIND_LEADER, error.definite)
        case BrokerResponseError(definite=False):
            return Verdict(Step.FIND_LEADER, definite=False)
        case FlowControlError():  # our own: too much under way on that connection
            return Verdict(Step.WAIT, definite=True)
        case BrokerResponseError() if error.code in BUSY:
            return Verdict(Step.WAIT, definite=True)
        case BrokerResponseError() if error.code in REFUSED_HERE:
            return Verdict(Step.ELSEWHERE, definite=True)
        case _:
            return Verdict(Step.GIVE_UP, error.definite)


def backoff_s(failures: int, first_s: float = 0.01, most_s: float = 0.5) -> float:
    """Returns the pause after that many failures in a row (1 for the first), doubling each time."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30))
