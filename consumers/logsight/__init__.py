"""What is unusual in a node's log, by the digests in its heartbeats: pure folds, by a clock that is handed in."""
