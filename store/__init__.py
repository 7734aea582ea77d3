"""One replica's disk: CommitLog segments and the LMDB state."""
