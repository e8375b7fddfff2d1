"""``refold snapshots``: which are kept."""

from __future__ import annotations

import click

from refold.cli.options import Common, common
from refold.cli.output import say, say_json, short, size_text, table, time_text
from refold.schemas.events import SnapshotTaken


@click.command(short_help="List the snapshots.")
@common
def snapshots(common: Common) -> None:
    """List the snapshots that are kept: round, time, size, digest. A snapshot only saves time; the log holds its digest."""
    with common.federation() as federation:
        history = federation.history()
        try:
            kept = [taken for _, taken in sorted(history.snapshots.items())]
        finally:
            history.close()
    if common.json:
        for taken in kept:
            say_json(_object(taken))
        return
    rows = [(t.round, time_text(t.time_ms), size_text(_size_bytes(t)), short(t.state_digest)) for t in kept]
    for line in table(("round", "taken", "size", "state"), rows):
        say(line)


def _object(taken: SnapshotTaken) -> dict[str, object]:
    return {
        "round": taken.round,
        "time_ms": taken.time_ms,
        "size_bytes": _size_bytes(taken),
        "state": taken.state_digest.hex(),
        "parameters": taken.parameters_digest.hex(),
        "attempt": taken.attempt.hex(),
    }


def _size_bytes(taken: SnapshotTaken) -> int:
    return taken.parameters.size_bytes + (taken.slots.size_bytes if taken.slots else 0)
