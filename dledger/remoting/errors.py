"""How errors travel: as a response code, a text, and whether the request may have taken effect."""

from __future__ import annotations

from dledger.codes import EXT_OUTCOME, OUTCOME_REFUSED, OUTCOME_UNKNOWN, ResponseCode
from dledger.errors import BrokerResponseError, DLedgerError
from dledger.remoting.commands import Command


def error_answer(error: BaseException) -> tuple[int, dict[str, object], str]:
    """Returns response code, extension fields and remark for an error."""
    if isinstance(error, DLedgerError):
        code = error.code if isinstance(error, BrokerResponseError) else error.response_code
        outcome = OUTCOME_REFUSED if error.definite else OUTCOME_UNKNOWN
        return code, {EXT_OUTCOME: outcome}, str(error) or type(error).__name__
    return ResponseCode.SYSTEM_ERROR, {EXT_OUTCOME: OUTCOME_UNKNOWN}, f"internal error: {error!r}"


def response_error(response: Command, address: str = "") -> BrokerResponseError:
    """Returns the error that a response other than success stands for.

    A server that does not speak our extension fields refuses before any effect, except with
    SYSTEM_ERROR, which may also mean that replication was not confirmed in time.
    """
    try:
        outcome = response.ext.get(EXT_OUTCOME)
    except DLedgerError:
        outcome = None
    if outcome is None:
        definite = response.code != ResponseCode.SYSTEM_ERROR
    else:
        definite = outcome == OUTCOME_REFUSED
    return BrokerResponseError(response.code, response.remark, address=address, definite=definite)
