"""Faults planted in the brokers or in the harness itself, to see that a run finds them.

Nothing here can be reached from a production process: a planted broker is another program
(`python -m jepsen_tests.hosts.broker --plant K1`).
"""
