"""What an examination of a bus finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Works, and may not for long or not well."""
    FAILURE = "failure"
    """Does not work, or would lose data: a server refuses to start."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that was looked at.

    Parameters
    ----------
    subject
        What: ``broker``, ``clock``, a topic's name …
    what
        What was found, with its figures.
    fix
        The remedy, as exactly as it can be said; "" where all is well.
    """

    subject: str
    severity: Severity
    what: str
    fix: str = ""
