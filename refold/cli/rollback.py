"""``refold rollback``: let training go on from an earlier round."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click

from refold.cli.options import Common, common, patient
from refold.cli.ordering import order, require_obeyable
from refold.cli.output import facts, note, number_of, say, say_json
from refold.consumers.checkpoint_policy import CHOOSING, Known
from refold.consumers.snapshot_facts import SnapshotFacts
from refold.federation import Federation
from refold.producers.history import History
from refold.producers.lineage import Lineage
from refold.refs import resolve_round
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.events import RoundCommitted
from refold.schemas.rollback import RollBack


@dataclass(frozen=True, slots=True)
class Effect:
    """What a rollback would do.

    Parameters
    ----------
    round, parent, abandoned
        As `RolledBack` will say them, unless another round closes before.
    state
        Digest of the state that training goes on from.
    rounds_left
        Rounds of the newest one's branch that are no longer its past.
    updates_left, clients
        Accepted updates that these rounds applied, and how many clients made them.
    """

    round: int
    parent: int
    abandoned: int
    state: str
    rounds_left: int
    updates_left: int
    clients: int


@click.command(short_help="Let training go on from an earlier round.")
@common
@click.argument("ref")
@click.option("--reason", default="", help="Why; it is kept in the log.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")
@patient("the server has taken it")
def rollback(common: Common, ref: str, reason: str, dry_run: bool, timeout_s: float | None) -> None:
    """Go back to the round REF and let training go on from there. Needs the operator's key.

    REF is a round (r120, HEAD~5, a digest), or `nearest` to the newest with a snapshot, the last `good` one, or the `best`.
    Nothing is deleted: a new round is opened whose parent is REF, and the rounds after REF stay in the log as a branch that was
    left (`refold log --graph`). Updates that clients made from those are refused without blame. To undo it, go back to what was
    the newest round.
    """
    with common.federation() as federation:
        effect = effect_of(federation, ref)
        command, index = b"", None
        asked = RollBack(effect.parent, reason)
        if dry_run:
            require_obeyable(federation, asked)
        else:
            command, index = order(federation, asked, timeout_s=timeout_s)
    if common.json:
        say_json({**asdict(effect), "dry_run": dry_run, "command": command.hex() or None, "index": index})
        return
    for line in facts(_told(effect)):
        say(line)
    if dry_run:
        note("nothing was done: this is what it would come to")
    else:
        note("ordered" if index is None else f"done by event {index} of `accepted`")


def _told(effect: Effect) -> list[tuple[str, object]]:
    return [
        ("goes on from", f"round {effect.parent}, state {effect.state[:12]}"),
        ("as round", effect.round),
        ("leaves", f"{number_of(effect.rounds_left, 'round')}, up to round {effect.abandoned}"),
        (
            "and in them",
            f"{number_of(effect.updates_left, 'applied update')} of {number_of(effect.clients, 'client')}; the log keeps them",
        ),
    ]


def effect_of(federation: Federation, ref: str) -> Effect:
    """Return what a rollback to `ref` would do now.

    Raises
    ------
    UsageError
        It is the newest round, or names none.
    """
    history = federation.history()
    try:
        lineage = history.lineage
        parent = _chosen(federation, history, ref) if ref in CHOOSING else resolve_round(ref, lineage)
    finally:
        history.close()
    if parent == lineage.head:
        raise UsageError(f"round {parent} is the newest: there is nothing to go back from")
    left = _left(lineage, parent)
    digest = lineage.state_digest(parent)
    assert digest is not None  # The ref names a round that is there.
    clients, updates = _applied_in(federation, left)
    return Effect(lineage.head + 1, parent, lineage.head, digest.hex(), len(left), updates, clients)


def _chosen(federation: Federation, history: History, word: str) -> int:
    """Return the round that a way of choosing comes to."""
    facts_ = SnapshotFacts(federation.bus, federation.topics, federation.genesis)
    try:
        facts_.follow()
    finally:
        facts_.close()
    lineage = history.lineage
    past = tuple(sorted(lineage.past() - {lineage.head}, reverse=True))
    known = Known(past, frozenset(history.snapshots), facts_.log.values, federation.roster().healing.last_good)
    round_ = CHOOSING[word].choose(known)
    if round_ is None:
        raise NotFoundError(
            f"no round is {word!r}", hint="nothing was reported of any model, or there is no snapshot; name a round"
        )
    return round_


def _left(lineage: Lineage, parent: int) -> set[int]:
    """Return the newest round's ancestors, itself among them, that are not those of `parent`."""
    kept, at = {parent}, parent
    while at in lineage.rounds:
        at = lineage.rounds[at].parent
        kept.add(at)
    left, at = set(), lineage.head
    while at not in kept:
        left.add(at)
        at = lineage.rounds[at].parent
    return left


def _applied_in(federation: Federation, rounds: set[int]) -> tuple[int, int]:
    """Return how many clients' updates, and how many of them, some rounds applied."""
    members = [
        member
        for event, _ in federation.log("rounds")
        if isinstance(event, RoundCommitted) and event.round in rounds
        for member in event.members
        if member.weight
    ]
    return len({member.client for member in members}), len(members)
