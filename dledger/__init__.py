"""Apache RocketMQ's model and wire protocol on a Raft-replicated log: the public face."""
