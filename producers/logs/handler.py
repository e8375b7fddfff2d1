"""A handler of Python's `logging` that gives every record to a watch."""

from __future__ import annotations

import logging

from refold.producers.logs.watch import LogWatch
from refold.schemas.condition import CRITICAL, DEBUG, ERROR, INFO, WARNING


class WatchHandler(logging.Handler):
    """Add it to a logger, and what it logs is counted and mined; formats nothing and writes nowhere.

    Of a record with a traceback, the exception's type and message count as a line of their own. A message of several lines is
    each of them. A record whose arguments do not fit its message counts as the bare message: logging must never raise.
    """

    def __init__(self, watch: LogWatch, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record in."""
        level = level_of_record(record)
        for line in _message(record).split("\n", MOST_LINES)[:MOST_LINES]:
            self._watch.take(f"{record.name}: {line}", level)
        if record.exc_info and record.exc_info[1] is not None:
            self._watch.take(f"{record.name}: {_exception(record.exc_info[1])}", max(level, ERROR))


MOST_LINES = 20
"""Of one message."""


def level_of_record(record: logging.LogRecord) -> int:
    """Return a record's level as digests number them."""
    bounds = ((logging.CRITICAL, CRITICAL), (logging.ERROR, ERROR), (logging.WARNING, WARNING), (logging.INFO, INFO))
    return next((level for least, level in bounds if record.levelno >= least), DEBUG)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # The program's own __str__ and arguments: anything.
        return str(record.msg) if isinstance(record.msg, str) else type(record.msg).__name__


def _exception(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    except Exception:  # As above.
        return type(error).__name__
