"""Small objects for the search: what `Call.f`, `args` and `result` mean for each.

An object starts as `initial`. A result of None in an `ok` call that returns something is a value,
not "unknown"; only indeterminate calls have unknown results.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from types import MappingProxyType
from typing import Any, Final

from jepsen_tests.checkers.log_store import NEVER
from jepsen_tests.checkers.search import Model, Operation


def _fits(operation: Operation, result: Any) -> bool:
    return operation.optional or operation.result == result


def _frozen(value: Any) -> Hashable:
    """Returns a hashable copy of what came out of JSON."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return value  # type: ignore[no-any-return]


class Register:
    """`read` -> value, `write` [new], `cas` [old, new] -> whether it did."""

    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        args = [_frozen(arg) for arg in operation.args]
        match operation.f:
            case "read" if operation.optional or _frozen(operation.result) == state:
                yield state
            case "write":
                yield args[0]
            case "cas":
                did = state == args[0]
                if _fits(operation, did):
                    yield args[1] if did else state


class Lock:
    """`acquire` [owner] -> token or None; `release` [owner, token] -> did; `expire`; `holder`.

    `guarded` [token] -> accepted: a write that the fence lets through only with the newest token.
    Tokens must rise. The state is (owner or None, newest token).
    """

    initial: Hashable = (None, 0)

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        owner, token = state
        match operation.f:
            case "acquire":
                yield from self._acquire(state, operation)
            case "release":
                held = owner == operation.args[0] and token == operation.args[1]
                if _fits(operation, held):
                    yield (None, token) if held else state
            case "expire":
                yield (None, token)
            case "guarded" if _fits(operation, operation.args[0] == token):
                yield state
            case "holder" if _fits(operation, owner):
                yield state

    def _acquire(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        owner, token = state
        wanted = operation.args[0]
        if operation.optional:
            yield state
            if owner is None:
                yield (wanted, token + 1)
        elif operation.result is None:
            if owner is not None and owner != wanted:
                yield state
        elif owner == wanted and operation.result == token:
            yield state  # asking again renews
        elif owner is None and operation.result > token:
            yield (wanted, operation.result)


class QueueLock:
    """`lock` [owner] -> whether it holds it now; `unlock` [owner]. The state is the owner or None.

    Without an end by time: such a lock is in the hands of live owners for less than that.
    """

    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        wanted = operation.args[0]
        match operation.f:
            case "lock":
                did = state is None or state == wanted
                if _fits(operation, did):
                    yield wanted if did else state
            case "unlock":
                yield None if state == wanted else state


class Config(Register):
    """A register that begins with 0: the settings of a new topic."""

    initial: Hashable = 0


def settled_writes(operations: Sequence[Operation]) -> list[Operation]:
    """Returns the operations on a `Config` without those writes of which nothing is known.

    Every write has a value of its own. One of unknown outcome that nobody read may as well not have
    happened. One that was read has happened before that read ended. So nothing is left to guess,
    and no legal order is lost or won.
    """
    seen: dict[Any, int] = {}
    for operation in operations:
        if operation.f == "read" and not operation.optional:
            value = _frozen(operation.result)
            seen[value] = min(seen.get(value, NEVER), operation.ret)
    settled: list[Operation] = []
    for operation in operations:
        if not operation.optional:
            settled.append(operation)
        elif operation.f == "write" and (value := _frozen(operation.args[0])) in seen:
            settled.append(operation._replace(ret=seen[value], optional=False))
    return settled


class Transaction:
    """`prepare`, `commit` -> did, `rollback` -> did, `state` -> the state.

    States are "none", "prepared", "committed" and "rolled_back".
    Ending a transaction again the same way succeeds; the other way is refused.
    """

    initial: Hashable = "none"

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        match operation.f:
            case "prepare" if state == "none":
                yield "prepared"
            case "state" if _fits(operation, state):
                yield state
            case "commit" | "rollback":
                wanted = "committed" if operation.f == "commit" else "rolled_back"
                did = state in ("prepared", wanted)
                if _fits(operation, did):
                    yield wanted if did else state


class SequenceNumbers:
    """An idempotent producer: `send` [sequence] -> offset. The state is ((sequence, offset), ...).

    The first send of a sequence number gets a new offset, all later ones the same again.
    """

    initial: Hashable = ()

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        if operation.f != "send":
            return
        sequence = operation.args[0]
        known = dict(state)
        if sequence in known:
            # An offset of None was given to a send whose answer nobody saw: this one tells it.
            if known[sequence] is None and not operation.optional:
                if operation.result not in known.values():
                    yield tuple(sorted({**known, sequence: operation.result}.items()))
            elif _fits(operation, known[sequence]):
                yield state
        elif operation.optional:
            yield tuple(sorted({**known, sequence: None}.items()))
        elif operation.result not in known.values():
            yield tuple(sorted({**known, sequence: operation.result}.items()))


class Versioned:
    """A configuration: `put` [value, expected version or None] -> new version or None; `get`.

    `get` -> [value, version]. The state is (value, version), first (None, 0).
    """

    initial: Hashable = (None, 0)

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        value, version = state
        match operation.f:
            case "get" if operation.optional or _frozen(operation.result) == state:
                yield state
            case "put":
                new, expected = _frozen(operation.args[0]), operation.args[1]
                did = expected is None or expected == version
                if _fits(operation, version + 1 if did else None):
                    yield (new, version + 1) if did else (value, version)


class ResettableOffset:
    """A committed offset that may go back: `commit` [x], `reset` [x], `fetch` -> x or None."""

    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        match operation.f:
            case "commit":
                yield operation.args[0] if state is None else max(state, operation.args[0])
            case "reset":
                yield operation.args[0]
            case "fetch" if _fits(operation, state):
                yield state


class Membership:
    """`add` [member] -> did, `remove` [member] -> did, `list` -> sorted members."""

    initial: Hashable = ()

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        match operation.f:
            case "list" if operation.optional or _frozen(operation.result) == state:
                yield state
            case "add" | "remove":
                member = operation.args[0]
                did = (member in state) != (operation.f == "add")
                if _fits(operation, did):
                    if not did:
                        yield state
                    elif operation.f == "add":
                        yield tuple(sorted({*state, member}))
                    else:
                        yield tuple(other for other in state if other != member)


MODELS: Final[MappingProxyType[str, Model]] = MappingProxyType(
    {
        "register": Register(),
        "lock": Lock(),
        "queue_lock": QueueLock(),
        "config": Config(),
        "transaction": Transaction(),
        "sequence": SequenceNumbers(),
        "versioned": Versioned(),
        "resettable_offset": ResettableOffset(),
        "membership": Membership(),
    }
)
