"""Records, commits, codecs, digests and errors."""
