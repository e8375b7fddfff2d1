"""The worker loop, its groups and the detectors."""
