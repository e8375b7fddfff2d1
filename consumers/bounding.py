"""Which refused updates are named together, and whose bytes are not kept: so that nobody's noise fills log or quarantine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from refold.consumers.pending import Pending
from refold.consumers.roster import Roster
from refold.consumers.standing import UNSEEN, Source


@dataclass(slots=True)
class Bounds:
    """What is done in short with the refusals of one commit.

    Parameters
    ----------
    together
        Sources of refusals that are counted in rows and not named one by one.
    unkept
        Sources of those whose bytes do not go to quarantine.
    """

    together: set[Source] = field(default_factory=set)
    unkept: set[Source] = field(default_factory=set)


def bounds_of(refused: Iterable[Pending], roster: Roster) -> Bounds:
    """Return what is done in short, by what the log holds of the open round already."""
    found = Bounds()
    updates, repeats, strangers = roster.tally.updates.copy(), roster.tally.repeats.copy(), roster.tally.strangers.copy()
    limits = roster.limits
    named: set[tuple[str, bytes]] = set()
    for item in refused:
        if item.body is None:
            short = strangers[item.partition] >= limits.strangers_kept_per_round
            strangers[item.partition] += 1
            unkept = short
        elif item.reason in UNSEEN:
            short = unkept = True
        elif item.reason == "duplicate":
            row = (item.client, item.digest)
            short, unkept = row not in named and repeats[item.client] >= limits.repeats_per_round, True
            if not short and row not in named:
                named.add(row)
                repeats[item.client] += 1
        else:
            short, unkept = False, updates[item.client] >= limits.kept_per_round
            updates[item.client] += 1
        if short:
            found.together.add(item.source)
        if unkept:
            found.unkept.add(item.source)
    return found
