"""Going back to an earlier round: what is ordered, and the event that it comes to.

`rounds` repeats the event, and commits the round that it opens, whose state is its parent's: who knows nothing of branches
follows parents and goes the right way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from refold.schemas.canonical import Name, Text, Uint, Within, record
from refold.schemas.erasure import CommandId
from refold.schemas.plans import ConfigSpan, RoundPlan, Settings, choosing

ROLLED_BACK = "rollback"
"""Outcome of the round that a rollback opens."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the rounds right after a rollback go that are to give back what was lost: few clients each, settings of their own.

    Parameters
    ----------
    rounds
        How many there are. They do not count for training's progress, which is the abandoned branch's again after them.
    clients
        How many train in each: they take turns, so that each is asked about as often as every other.
    spans
        Settings that differ from the plan's; the first of these rounds is number 1.
    """

    rounds: Annotated[int, Within(1, 1 << 16)]
    clients: Annotated[int, Within(1, 1 << 16)]
    spans: Annotated[tuple[ConfigSpan, ...], Within(0, 4096)]

    def config_at(self, number: int) -> Settings:
        """Return what differs in one of these rounds, the first being 1."""
        config: Settings = ()
        for span in self.spans:
            if span.first_round <= number:
                config = span.config
        return config


@record(140)
@dataclass(frozen=True, slots=True)
class RollBack:
    """Go on from this round; what was built on it stays in the log and is no longer the model's past."""

    round: Uint
    reason: Text
    calibration: Calibration | None = None


def _blaming_nobody(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the fields of a rollback from before it could ban anyone."""
    return (*fields[:-1], (), fields[-1])


@record(141, version=3, upcasts={1: choosing(plans=(5,)), 2: _blaming_nobody})
@dataclass(frozen=True, slots=True)
class RolledBack:
    """A round is opened whose parent is an earlier one, and whose state is that one's.

    Parameters
    ----------
    round
        The number after the newest: numbers are never used again.
    parent
        The round gone back to.
    abandoned
        The newest round before, the tip of the branch that is left.
    cause
        ``operator``, or what the federation saw by itself: ``not-finite``, ``collapse``, ``decline``, ``digest``.
    next_plan
        Of the round that is open now; its settings are those of the training that was done on this branch.
    calibration
        How training goes on at first; None where it goes on as it did from the parent.
    culprits
        Clients that are banned with it, on the evidence that `reason` names.
    command_id
        None where nobody ordered it.
    """

    round: Uint
    parent: Uint
    abandoned: Uint
    cause: Annotated[str, Within(1, 32)]
    reason: Text
    next_plan: RoundPlan
    calibration: Calibration | None = None
    culprits: Annotated[tuple[Name, ...], Within(0, 4096)] = ()
    command_id: CommandId | None = None
