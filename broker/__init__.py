"""The broker: state machine over store and raft, request processors, long polling."""
