"""``refold show``: a round, an update or a client on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refold.bus.ledger import read_all
from refold.cli.explain import Facts, explain_round, explain_update
from refold.cli.explain_client import explain_client
from refold.cli.options import Common, common
from refold.cli.output import note, say, say_json
from refold.cli.plotting import draw, points_of
from refold.federation import Federation
from refold.producers.lineage import LineageReader
from refold.refs import FORMS, Ref, parse_ref, rounds_with
from refold.schemas.errors import NotFoundError, UsageError


@click.command(short_help="Explain a round, an update or a client.")
@common
@click.argument("ref")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw a client's norm, cosine and reputation.")
def show(common: Common, ref: str, plot: Path | None) -> None:
    """Explain what REF names: a round (r12, 12, HEAD~3), an update or state (a digest's first digits), or a client.

    Where a word could be several things, `round:`, `client:` or `digest:` before it decides. A client is drawn over the rounds
    with --plot FILE.svg (or .png, .pdf).
    """
    with common.federation() as federation:
        told, lines = _explained(federation, ref, plot)
    if plot is not None:
        note(f"wrote {plot}")
    if common.json:
        say_json(told, indent=2)
        return
    for line in lines:
        say(line)


def _explained(federation: Federation, word: str, plot: Path | None) -> tuple[dict[str, Any], list[str]]:
    found = Facts(read_all(federation.bus, federation.topics.accepted), read_all(federation.bus, federation.topics.rounds))
    reader = LineageReader(federation.bus, federation.topics)
    try:
        lineage = reader.read_to_end()
    finally:
        reader.close()
    ref = parse_ref(word, lineage, found.clients)
    if ref.kind == "client":
        points = points_of(federation.bus, federation.topics, found, ref.text)
        if plot is not None:
            draw(points, ref.text, plot)
        return explain_client(found, ref.text, points)
    if plot is not None:
        raise UsageError(
            f"{word} is no client, and only clients are drawn", hint="give a client's name, or `client:` before it"
        )
    if ref.round is not None:
        return explain_round(found, lineage, ref.round)
    rounds, updates = rounds_with(ref.text, lineage), found.updates_with(ref.text)
    _check_one(ref, rounds, updates)
    return explain_round(found, lineage, rounds.pop()) if rounds else explain_update(found, updates.pop())


def _check_one(ref: Ref, rounds: set[int], updates: set[bytes]) -> None:
    if not rounds and not updates:
        raise NotFoundError(f"no update, state or client is called {ref.text}", hint=f"give {FORMS}")
    if len(rounds) + len(updates) > 1:
        names = [f"r{round_}" for round_ in sorted(rounds)] + sorted(digest.hex()[:16] for digest in updates)
        raise UsageError(f"{ref.text} names {len(names)} things: {', '.join(names[:8])}", hint="give more digits")
