"""Loads that measure a cluster through the public client; see `dledger bench`.

`figures` turns times into numbers (pure), `sending` and `reading` make the loads.
"""

from dledger.bench.figures import Figures
from dledger.bench.load import Load
from dledger.bench.reading import end_to_end, fan_out, read_backlog, read_raw
from dledger.bench.sending import prepare, send, send_batches, send_in_turn, send_paced

__all__ = [
    "Figures",
    "Load",
    "end_to_end",
    "fan_out",
    "prepare",
    "read_backlog",
    "read_raw",
    "send",
    "send_batches",
    "send_in_turn",
    "send_paced",
]
