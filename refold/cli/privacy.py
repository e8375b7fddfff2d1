"""``refold privacy``: what a client has spent of its privacy budget. Read from the files beside its outbox, without a bus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refold.cli.options import Common, common
from refold.cli.output import say, say_json, table
from refold.producers.privacy import epsilon_of
from refold.producers.spending import SUFFIX, Spent, read_spent
from refold.schemas.errors import NotFoundError, UsageError


@click.group(short_help="Say what a client has spent of its privacy.")
def privacy() -> None:
    """Say what a client that clips and adds noise has spent of its privacy."""


@privacy.command("status")
@common
@click.option("--key", metavar="FILE", help="The client's private key: its outbox lies beside it.")
@click.option("--outbox", metavar="DIR", help="The outbox itself.")
@click.option("--delta", type=float, help="δ to say ε at.  [the client's own]")
def status(common: Common, key: str | None, outbox: str | None, delta: float | None) -> None:
    """Say how many updates a client has released with which noise, and the ε that they cost.

    Counts what was released from this folder; metrics, numbers of examples and evaluations are not covered by it.
    """
    folder = _folder(key, outbox)
    if delta is not None and not 0 < delta < 1:
        raise UsageError(f"--delta {delta} is not between 0 and 1")
    found = [read_spent(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    if not found:
        raise NotFoundError("nothing was released with a privacy setting from here", path=folder)
    told = [_told(spent, spent.delta if delta is None else delta) for spent in found]
    if common.json:
        for each in told:
            say_json(each)
        return
    columns = ("federation", "client", "updates", "last_round", "epsilon", "delta", "budget")
    rows = [[_shown(each[name]) for name in columns] for each in told]
    for line in table(("federation", "client", "updates", "last round", "ε", "δ", "budget ε"), rows):
        say(line)


def _folder(key: str | None, outbox: str | None) -> Path:
    if (key is None) == (outbox is None):
        raise UsageError("give either --key or --outbox")
    folder = Path(outbox) if outbox is not None else Path(key or "").with_suffix(".outbox")
    if not folder.is_dir():
        raise NotFoundError("no outbox", path=folder, hint="it lies beside the client's key, where nobody chose another")
    return folder


def _told(spent: Spent, delta: float) -> dict[str, Any]:
    return {
        "federation": spent.federation,
        "client": spent.client,
        "updates": spent.count,
        "released": [list(row) for row in spent.released],
        "last_round": spent.last_round,
        "epsilon": epsilon_of(spent.released, delta),
        "delta": delta,
        "budget": spent.budget,
    }


def _shown(value: object) -> object:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else value
