"""Our client against Apache RocketMQ's own servers."""
