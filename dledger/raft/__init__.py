"""The replicated log: pysyncobj behind one adapter."""

from dledger.raft.config import RaftConfig
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig

__all__ = ["RaftConfig", "RaftNode", "TcpTransport", "TransportConfig"]
