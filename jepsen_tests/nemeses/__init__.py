"""Faults on running clusters, each with a proof that it bit."""
