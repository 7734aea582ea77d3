"""The dledger command."""
