"""What a node tells of its log: lines are cleaned, counted and mined there, and a digest goes out, never the log."""
