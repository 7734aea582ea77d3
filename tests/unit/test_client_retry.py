from __future__ import annotations

import pytest

from dledger.client.retry import Step, backoff_s, judge
from dledger.errors import (
    BrokerResponseError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    FlowControlError,
    MessageRejectedError,
    RequestTimeoutError,
)


@pytest.mark.parametrize(
    ("error", "step", "definite"),
    [
        pytest.param(ConnectFailedError("x"), Step.FIND_LEADER, True, id="connect"),
        pytest.param(ConnectionLostError("x"), Step.FIND_LEADER, False, id="lost"),
        pytest.param(RequestTimeoutError("x"), Step.FIND_LEADER, False, id="timeout"),
        pytest.param(BrokerResponseError(14, ""), Step.FIND_LEADER, True, id="not-leader"),
        pytest.param(
            BrokerResponseError(1, "", definite=False), Step.FIND_LEADER, False, id="unknown"
        ),
        pytest.param(BrokerResponseError(2, ""), Step.WAIT, True, id="busy"),
        pytest.param(BrokerResponseError(215, ""), Step.WAIT, True, id="flow-control"),
        pytest.param(FlowControlError("x"), Step.WAIT, True, id="our-own-limit"),
        *(
            pytest.param(BrokerResponseError(code, ""), Step.ELSEWHERE, True, id=f"code-{code}")
            for code in (17, 16, 1, 204, 205, 1500)
        ),
        pytest.param(BrokerResponseError(13, ""), Step.GIVE_UP, True, id="illegal"),
        pytest.param(BrokerResponseError(26, ""), Step.GIVE_UP, True, id="no-group"),
        pytest.param(MessageRejectedError("x"), Step.GIVE_UP, True, id="our-own-check"),
    ],
)
def test_what_follows_from_an_error(error: DLedgerError, step: Step, definite: bool) -> None:
    verdict = judge(error)
    assert verdict.step is step
    assert verdict.definite is definite


def test_pauses_double_up_to_a_limit() -> None:
    assert [backoff_s(n, 0.1, 1.0) for n in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff_s(10_000, 0.1, 1.0) == 1.0
