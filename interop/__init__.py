"""Cases on RocketMQ's official clients, unchanged, against a cluster of ours: `make interop`.

Not a part of the product: it needs a JDK, Maven, Go and Node (docs/compatibility.md says which),
and fetches the clients from their registries.
"""
