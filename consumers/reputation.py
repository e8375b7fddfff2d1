"""Reputation: how a client's updates fared lately, between 0 and 1. A fold over verdicts, the same at every successor.

It falls by half with an update that was refused for what it holds, and goes back half of the way to 1 with every one that was
accepted: whoever was wrongly refused once is above 0.9 again after three rounds. What broke or was copied on the way, and what
came at the wrong time, says nothing of a client and counts for nothing. Nor does it judge: no update is refused for what others
of its client were. It tells people whom to look at; banning is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable

from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.reasons import blames

FIRST = 1.0
POOR = 0.2
"""Below it someone should look: three refusals in a row come there, or a client that is refused three times of four."""


def after_acceptance(reputation: float) -> float:
    """Return what a reputation becomes with an update that was accepted."""
    return reputation + (FIRST - reputation) / 2


def after_refusal(reputation: float, reasons: Iterable[str]) -> float:
    """Return what it becomes with one that was refused; the same, where no reason blames the client."""
    return reputation / 2 if any(blames(reason) for reason in reasons) else reputation


def after(reputation: float, verdict: UpdateAccepted | UpdateRejected) -> float:
    """Return what it becomes with a verdict; evaluations say nothing."""
    if verdict.origin.kind != "train":
        return reputation
    if isinstance(verdict, UpdateAccepted):
        return after_acceptance(reputation)
    return after_refusal(reputation, verdict.reasons)
