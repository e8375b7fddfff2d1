"""``refold prune``: let payloads of old rounds go."""

from __future__ import annotations

import time
from contextlib import closing

import click

from refold.bus.ledger import LedgerReader
from refold.cli.options import Common, common
from refold.cli.ordering import interruptible
from refold.cli.output import note, say, say_json
from refold.federation import Federation
from refold.refs import resolve_round
from refold.schemas.errors import TryAgainError, UsageError
from refold.schemas.events import DeltasPruned, PruningChanged

POLL_S = 0.2


@click.command(short_help="Let payloads of old rounds go.")
@common
@click.option("--keep-rounds", type=click.IntRange(0), metavar="N", help="Keep those of the newest N rounds; 0 keeps all.")
@click.option("--before", metavar="ROUND", help="Let those of rounds before this one go now: r120, HEAD~5.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait.")
def prune(common: Common, keep_rounds: int | None, before: str | None, timeout: float) -> None:
    """Let payloads of old rounds go: accepted deltas, large features, quarantine. Needs the operator's key. Cannot be undone.

    Rounds stay exact, from their steps and snapshots; `refold verify` says which can no longer be derived from deltas. Updates
    of at most 64 KiB travel inside the log itself, with their small features, and stay: sealing and erasing reaches those.
    """
    if keep_rounds is None and before is None:
        raise UsageError("give --keep-rounds or --before")
    with common.federation() as federation, interruptible() as sending:
        round_ = _round(federation, before) if before is not None else None
        with closing(LedgerReader(federation.bus, federation.topics.accepted)) as reader:
            command = sending.send(lambda: federation.prune(keep_rounds=keep_rounds, before_round=round_))
            changed, pruned = _wait(federation, reader, command, round_, timeout)
    if common.json:
        told = {"keep_rounds": changed.keep_rounds, "before_round": changed.before_round}
        say_json({**told, "pruned_before": pruned.before_round if pruned else None})
        return
    kept = f"the newest {changed.keep_rounds} rounds" if changed.keep_rounds else "all rounds"
    say(f"payloads of {kept} are kept" + (f"; those of rounds below {pruned.before_round} are pruned" if pruned else ""))
    if changed.keep_rounds:
        note("the server prunes a few rounds at a time as they age")


def _round(federation: Federation, word: str) -> int:
    history = federation.history()
    try:
        return resolve_round(word, history.lineage)
    finally:
        history.close()


def _wait(
    federation: Federation, reader: LedgerReader, command: bytes, before: int | None, timeout_s: float
) -> tuple[PruningChanged, DeltasPruned | None]:
    """Return the change of policy, and what was pruned where a round was named.

    Raises
    ------
    TryAgainError
        It is not done in time; the command stays where it is.
    """
    deadline_s = time.monotonic() + timeout_s
    changed: PruningChanged | None = None
    pruned: DeltasPruned | None = None
    while changed is None or (before and (pruned is None or pruned.before_round < before)):
        for entry in reader.poll(POLL_S):
            for event in entry.events:
                if isinstance(event, PruningChanged) and event.command_id == command:
                    changed = event
                elif isinstance(event, DeltasPruned):
                    pruned = event
        if time.monotonic() > deadline_s and reader.next_offset >= federation.bus.end_offset(reader.place):
            hint = "it is written and will be taken; is a server running, and has it taken the snapshot of round 0?"
            raise TryAgainError(f"not pruned within {timeout_s:g} s", topic=federation.topics.commands, hint=hint)
    return changed, pruned
