"""The replicated log: pysyncobj behind one adapter."""

import _socket
import socket

from dledger.raft.config import RaftConfig
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig

__all__ = ["RaftConfig", "RaftNode", "TcpTransport", "TransportConfig"]

# Importing pysyncobj 0.3.17 replaces `socket.inet_ntop` of the whole process, on every platform,
# with one that works on Windows only (`pysyncobj/win_inet_pton.py`, its last line). Put it back.
socket.inet_ntop = _socket.inet_ntop
