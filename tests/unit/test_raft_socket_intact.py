"""Importing the Raft library must not change what other modules use."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["dledger.raft", "pysyncobj"])
def test_inet_ntop_still_works(first: str) -> None:
    """pysyncobj 0.3.17 replaces `socket.inet_ntop` with a function for Windows."""
    code = (
        f"import {first}, dledger.raft, socket; print(socket.inet_ntop(socket.AF_INET, bytes(4)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.0.0.0\n"
