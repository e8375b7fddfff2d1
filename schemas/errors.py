"""Every error that Refold raises, in one tree.

::

    RefoldError                    exit code 1
    ├── UsageError                 2   the call's words are wrong
    ├── ConfigurationError         78  a setting is wrong or missing
    ├── NotFoundError              4   no such round, client, topic or file
    ├── InvalidRecord              1   bytes from outside are not what they claim (carries a reason code)
    ├── IntegrityError             3   our own log, step or snapshot is not what its digest says
    ├── PlaceTakenError            5   another writer holds the place
    │   └── FencedError            5   another process runs under this one's name
    ├── TryAgainError              75  a wait ran out, or room is lacking for now
    └── BusError                   69  the bus does not answer
        └── StorageFullError       75  the disk behind it is full

Bad input raises `InvalidRecord` and ends in quarantine; everything below `BusError` and `IntegrityError` raises through the
worker loop, so that no position moves forward.
"""

from __future__ import annotations


class RefoldError(Exception):
    """An error that says what happened, where, and what to do.

    Parameters
    ----------
    message
        What happened, as one sentence without its full stop.
    hint
        What the reader can do about it.
    where
        Named places: ``topic``, ``partition``, ``offset``, ``client``, ``round``, ``path`` …
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", **where: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = {name: value for name, value in where.items() if value is not None}

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += " (" + ", ".join(f"{name} {value}" for name, value in self.where.items()) + ")"
        if self.hint:
            text += f": {self.hint}"
        return text


class UsageError(RefoldError):
    """The call's words are wrong."""

    exit_code = 2


class ConfigurationError(RefoldError):
    """A setting is wrong, unknown or missing."""

    exit_code = 78


class NotFoundError(RefoldError):
    """No such round, client, topic or file."""

    exit_code = 4


class InvalidRecord(RefoldError):
    """Bytes from outside are not what they claim to be.

    Parameters
    ----------
    reason
        A code of `refold.schemas.reasons`, the one that the verdict will carry.
    """

    def __init__(self, reason: str, message: str = "", *, hint: str = "", **where: object) -> None:
        super().__init__(message or reason, hint=hint, **where)
        self.reason = reason


class IntegrityError(RefoldError):
    """Something that Refold wrote is not what its digest says."""

    exit_code = 3


class PlaceTakenError(RefoldError):
    """Another writer holds the place."""

    exit_code = 5


class FencedError(PlaceTakenError):
    """Another process runs under this one's name; coming back would only fence that one in its turn."""


class TryAgainError(RefoldError):
    """A wait ran out; nothing was lost and the same call may succeed later."""

    exit_code = 75


class BusError(RefoldError):
    """The bus does not answer."""

    exit_code = 69


class StorageFullError(BusError):
    """The disk behind the bus is full; what was being written is not there, all else is."""

    exit_code = 75
