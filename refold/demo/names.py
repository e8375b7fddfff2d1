"""Words that the parts of the demonstration share."""

from __future__ import annotations

FEDERATION = "digits"
BUS_FILE = "bus.db"
EMBEDDED, STARTED = "sqlite", "kafka"
"""Buses that are no URL: a file in each run's folder; brokers for as long as the demonstration runs."""
