"""The nameserver: a pure route table and its server."""
