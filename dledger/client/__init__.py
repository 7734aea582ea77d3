"""Producers, consumers and admin: what an application uses to talk to a cluster.

Everything here is also exported by `dledger` itself. Decisions live in modules without I/O
(`retry`, `leaders`, `routes`, `selection`, `topics`, `batching`, `rebalance`, `process_queue`,
`filters`); the asyncio shells around them are `session`, `producer`, `pull_consumer`,
`push_consumer` and `admin`; `sync` fronts these for programs without an event loop.
"""
