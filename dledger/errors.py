"""The one tree of errors, and for each whether the failed operation may still take effect.

`definite` answers: is it certain that the operation did not and will not take effect? It is
`False` unless we know. The client's retry rule, the CLI's exit code and the checkers' verdicts all
read this attribute. `retryable` says that the same request may succeed later or elsewhere.

Exceptions keep facts as attributes and end their text with what to do, where anything can be done.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from dledger.codes import ResponseCode


class DLedgerError(Exception):
    """Root of all errors of this project."""

    definite: ClassVar[bool] = False
    retryable: ClassVar[bool] = False
    response_code: ClassVar[ResponseCode] = ResponseCode.SYSTEM_ERROR


class ConfigError(DLedgerError):
    """A configuration value is missing, unknown or breaks a rule."""

    definite = True

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field} = {value!r}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule


# --- protocol -----------------------------------------------------------------------------------


class ProtocolError(DLedgerError):
    """Bytes that break the remoting or Raft protocol."""


class LocalProtocolError(ProtocolError):
    """We would have broken the protocol: a bug or a misuse of the API. Nothing was sent."""

    definite = True


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. Its connection is closed."""


class FrameTooLargeError(RemoteProtocolError):
    """A frame announces more bytes than the limit. Nothing was allocated for it."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"frame of {size_bytes} bytes exceeds the limit of {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class MalformedBodyError(RemoteProtocolError):
    """The frame is whole but its body is not what the request or response should carry.

    The request had no effect and the connection stays.
    """

    definite = True
    response_code = ResponseCode.INVALID_PARAMETER


# --- store --------------------------------------------------------------------------------------


class StoreError(DLedgerError):
    """The local disk or what lies on it."""


class OffsetOutOfRangeError(StoreError):
    """A read outside what is stored."""

    definite = True
    response_code = ResponseCode.PULL_OFFSET_MOVED

    def __init__(self, requested: int, offset_min: int, offset_max: int) -> None:
        super().__init__(f"offset {requested} lies outside [{offset_min}, {offset_max})")
        self.requested = requested
        self.offset_min = offset_min
        self.offset_max = offset_max


class Corruption(Enum):
    """Why a record is not what was written."""

    TRUNCATED_HEADER = "truncated header"
    TRUNCATED_BODY = "truncated body"
    BAD_MAGIC = "bad magic"
    BAD_LENGTH = "bad length"
    BAD_CHECKSUM = "bad checksum"
    BAD_SEQUENCE = "log index or term out of sequence"
    MISSING_SEGMENT = "missing segment"


class CorruptRecordError(StoreError):
    """A stored record fails its checks and valid ones follow it: corruption, not a torn tail.

    The replica refuses to serve. Its log must be rebuilt from its peers.
    """

    def __init__(self, path: str, physical_offset: int, reason: Corruption) -> None:
        super().__init__(
            f"corrupt record in {path} at physical offset {physical_offset}: {reason.value}; "
            "this replica must be rebuilt from its peers"
        )
        self.path = path
        self.physical_offset = physical_offset
        self.reason = reason


class StoreClosedError(StoreError):
    """The store was closed; nothing was written."""

    definite = True


class DataDirectoryLockedError(StoreError):
    """Another process uses this data directory."""

    definite = True


class DiskFullError(StoreError):
    """No space left. Nothing was written; reads go on; writes resume when there is space."""

    definite = True
    retryable = True
    response_code = ResponseCode.SERVICE_NOT_AVAILABLE


class DiskFailureError(StoreError):
    """A write or sync failed. After that nothing is assumed: the replica stops."""


# --- replication --------------------------------------------------------------------------------


class ReplicationError(DLedgerError):
    """A proposal to the Raft group did not come back as committed."""

    response_code = ResponseCode.SERVICE_NOT_AVAILABLE


class NotLeaderError(ReplicationError):
    """This replica is not the serving leader. Nothing was proposed."""

    definite = True
    retryable = True

    def __init__(self, leader_id: str | None = None, term: int = 0) -> None:
        super().__init__(f"not the leader of term {term}; leader: {leader_id or 'unknown'}")
        self.leader_id = leader_id
        self.term = term


class ProposalRejectedError(ReplicationError):
    """The proposal was refused or its place in the log was taken by another entry."""

    definite = True
    retryable = True
    response_code = ResponseCode.SYSTEM_BUSY


class TransferFailedError(ReplicationError):
    """The leadership was not handed over: no follower was ready. The leader goes on."""

    definite = True
    retryable = True
    response_code = ResponseCode.SYSTEM_BUSY


class ChangeRefusedError(ReplicationError):
    """The group's configuration stays as it is; the text says why."""

    definite = True
    response_code = ResponseCode.NO_PERMISSION


class PeerRefusedError(ReplicationError):
    """A replica does not talk to this one, at least not yet."""

    definite = True
    retryable = True


class ReplicaRemovedError(ReplicationError):
    """This replica does not belong to its group any more. It has stopped taking part."""

    definite = True


class ReplicaReplacedError(ReplicationError):
    """This replica's data directory is not the one it had. It must be rebuilt from its peers."""

    definite = True


class LeadershipLostError(ReplicationError):
    """Leadership ended while the proposal was under way. It may still be committed."""

    retryable = True
    response_code = ResponseCode.SYSTEM_ERROR


class CommitTimeoutError(ReplicationError):
    """No majority confirmed the proposal in time. It may still be committed."""

    retryable = True
    response_code = ResponseCode.SYSTEM_ERROR


# --- what a request processor answers -----------------------------------------------------------


class RequestError(DLedgerError):
    """A request that a broker or nameserver refuses. It had no effect."""

    definite = True


class TopicNotFoundError(RequestError):
    """The topic does not exist and may not be created."""

    response_code = ResponseCode.TOPIC_NOT_EXIST


class GroupNotFoundError(RequestError):
    """The consumer group does not exist."""

    response_code = ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


class PermissionDeniedError(RequestError):
    """The topic or group does not allow this."""

    response_code = ResponseCode.NO_PERMISSION


class MessageRejectedError(RequestError):
    """A message is too large, badly named or badly formed."""

    response_code = ResponseCode.MESSAGE_ILLEGAL


class StaleSequenceError(RequestError):
    """A producer's numbered messages come after later ones. This attempt stored nothing."""

    response_code = ResponseCode.MESSAGE_ILLEGAL


class InvalidParameterError(RequestError):
    """A field of the request is missing or out of range."""

    response_code = ResponseCode.INVALID_PARAMETER


class NotFoundError(RequestError):
    """What was asked for does not exist."""

    response_code = ResponseCode.QUERY_NOT_FOUND


class FlowControlError(RequestError):
    """A limit of the server is reached; the text names it. Try again later."""

    retryable = True
    response_code = ResponseCode.SYSTEM_BUSY


# --- client -------------------------------------------------------------------------------------


class ClientError(DLedgerError):
    """A failure seen by a producer, consumer or admin client."""


class ClientClosedError(ClientError):
    """The client was closed (or never started); nothing was sent."""

    definite = True


class RouteNotFoundError(ClientError):
    """No nameserver knows a broker for the topic. Nothing was sent."""

    definite = True
    retryable = True


class ConnectFailedError(ClientError):
    """No connection could be made. Nothing was sent."""

    definite = True
    retryable = True


class ConnectionLostError(ClientError):
    """The connection broke after the request was written. It may have taken effect."""

    retryable = True


class RequestTimeoutError(ClientError):
    """No answer within the deadline. The request may have taken effect."""

    retryable = True


class BrokerResponseError(ClientError):
    """A server answered with a code other than success.

    `definite` here is an instance fact: `True` if the server refused before any effect.
    """

    def __init__(self, code: int, remark: str, *, address: str = "", definite: bool = True) -> None:
        try:
            name = ResponseCode(code).name
        except ValueError:
            name = "code"
        super().__init__(f"{name} ({code}) from {address or 'server'}: {remark or 'no reason'}")
        self.code = code
        self.remark = remark
        self.address = address
        self.definite = definite  # type: ignore[misc]


class ReceiptHandleError(ClientError):
    """A popped message is not out by this handle any more; it had no effect."""

    definite = True


class SendFailedError(ClientError):
    """A send gave up after one or more attempts; the last attempt's error is its `__cause__`.

    `definite` here is an instance fact: `True` if every attempt was refused or never left, so that
    the message is certainly not stored and never will be; `False` if one may still take effect.
    """

    retryable = True

    def __init__(self, reason: str, *, attempts: int, outcome_unknown_attempts: int) -> None:
        fate = "it may be stored" if outcome_unknown_attempts else "it was not stored"
        super().__init__(f"send gave up after {attempts} attempts, {fate}: {reason}")
        self.attempts = attempts
        self.outcome_unknown_attempts = outcome_unknown_attempts
        self.definite = outcome_unknown_attempts == 0  # type: ignore[misc]


class InvariantError(DLedgerError):
    """Our own code is wrong. Caught nowhere; it ends the process."""


def invariant(condition: object, text: str, **values: object) -> None:
    """Raises `InvariantError` unless the condition holds. Never compiled out.

    For what cannot happen if our code is right; never for input from the wire or the disk.
    """
    if not condition:
        facts = " ".join(f"{name}={value!r}" for name, value in values.items())
        raise InvariantError(f"{text} {facts}".rstrip())
