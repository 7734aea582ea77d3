"""Producers, consumers and admin clients."""
