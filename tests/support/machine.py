"""A state machine fed with commands, without a log."""

from typing import NamedTuple

from broker.feature_commands import encode_feature
from broker.state_machine import BrokerStateMachine
from store.state_store import StateStore


class LogEntry(NamedTuple):
    index: int
    term: int
    body: bytes


class Machine:
    """Applies commands one after the other; `reopen` is what a killed process sees."""

    def __init__(self, path):
        self.path = path
        self._open()

    def _open(self):
        self.store = StateStore.open(self.path, map_bytes=1 << 20, boot_id=lambda: "b")
        self.effects = []
        self.machine = BrokerStateMachine(self.store, self.effects.append)

    def reopen(self):
        self.store.close(clean=False)
        self._open()

    def apply(self, *commands):
        index = self.machine.applied_index
        bodies = [c if isinstance(c, bytes | bytearray) else encode_feature(c) for c in commands]
        entries = [LogEntry(index + number, 1, body) for number, body in enumerate(bodies, 1)]
        return self.machine.apply(entries)
