"""Which node fails, and why: pure functions and folds of what was heard, by a clock that is handed in."""
