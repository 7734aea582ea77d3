"""The real broker, raft, store and client code on a virtual clock, network and disk.

One seed decides everything: `dledger jepsen sim --first SEED --seeds 1 --trace` repeats a run
exactly. What is real and what stands in is told in `docs/testing.md`.
"""
