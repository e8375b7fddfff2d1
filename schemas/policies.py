"""Policies that may change while a federation runs, and what the server itself finds out about its model.

What decides lies in the log, so that a successor decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from refold.schemas.canonical import Name, Text, Uint, record
from refold.schemas.erasure import CommandId
from refold.schemas.plans import Settings

HEALING, SNAPSHOTS = "healing", "snapshots"
SUBJECTS = (HEALING, SNAPSHOTS)


@record(142)
@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """Let these settings of a policy hold from now on; those not named become what they are where nothing is said."""

    subject: Name
    settings: Settings


@record(143)
@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """From here on a policy has these settings.

    Parameters
    ----------
    subject
        ``healing`` or ``snapshots``.
    command_id
        None where the federation was made so.
    """

    subject: Name
    settings: Settings
    command_id: CommandId | None = None


@record(144)
@dataclass(frozen=True, slots=True)
class ReportModel:
    """What the server found out about a round's model. Signed by the server's key of the log, or by an operator.

    Parameters
    ----------
    metric, value
        What was measured: the value, None where it is not a finite number.
    fault, last_good
        Why the round's state is not what the log says, "" where it is; and the last round whose state is.
    """

    round: Uint
    metric: Name
    value: float | None
    fault: Text
    last_good: Uint


@record(145)
@dataclass(frozen=True, slots=True)
class ModelReported:
    """What the server found out about a round's model, as `ReportModel` says it."""

    round: Uint
    metric: Name
    value: float | None
    fault: Text
    last_good: Uint
    command_id: CommandId
