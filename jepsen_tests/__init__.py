"""Fault injection, history checkers and simulation."""
