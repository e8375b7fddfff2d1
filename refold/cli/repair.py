"""``refold repair``: take out of the model what some clients put in, and learn again what was lost with it."""

from __future__ import annotations

import math

import click

from refold.cli.options import Common, common
from refold.cli.ordering import order, require_obeyable
from refold.cli.output import facts, note, number_of, say, say_json, table
from refold.consumers.hindsight import Culprit
from refold.federation import Federation
from refold.recovering import WORK, Repair, Setting
from refold.refs import resolve_round
from refold.schemas.checks import BanClient
from refold.schemas.errors import UsageError
from refold.schemas.rollback import RollBack


@click.command(short_help="Take clients' influence out of the model.")
@common
@click.argument("clients", nargs=-1, metavar="[CLIENT]...")
@click.option(
    "--found", is_flag=True, help="Also those that detection, judging the log's features now, would have kept refusing."
)
@click.option("--to", metavar="REF", help="The round to go back to.  [the last without their influence]")
@click.option(
    "--work", type=click.FloatRange(0, 1), default=WORK, show_default=True, help="Share of lost work to ask for again."
)
@click.option("--per-round", type=click.IntRange(1), default=1, show_default=True, help="Clients asked in each such round.")
@click.option("--set", "said", metavar="NAME=VALUE", multiple=True, help="What their training is told; FROM:TO goes in a line.")
@click.option("--reason", default="repaired by the operator", help="Why; it is kept in the log.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")
@click.option("--timeout", type=float, default=15.0, show_default=True, help="Seconds to wait for each command.")
def repair(
    common: Common,
    clients: tuple[str, ...],
    found: bool,
    to: str | None,
    work: float,
    per_round: int,
    said: tuple[str, ...],
    reason: str,
    dry_run: bool,
    timeout: float,
) -> None:
    """Ban CLIENTs, go back to the last round that they had no part in, and let the others calibrate. Needs the operator's key.

    What the others taught since then is lost with it. A share of that work is asked for again, a few clients a round, with the
    settings of --set: small batches and a falling learning rate regain most for least, for instance `--set batch=2
    --set lr=0.2:0.003`. Their training must heed these settings. docs/RECOVERY.md has what was measured.
    """
    with common.federation() as federation:
        named = _found(federation, as_json=common.json) if found else ()
        culprits = sorted({*clients, *(culprit.client for culprit in named)})
        if not culprits:
            if found:
                note("nobody would have been refused again and again; nothing is done")
                raise click.exceptions.Exit(1)
            raise UsageError("name the clients, or let them be found with --found")
        config = dict(_setting(text) for text in said)
        plan = federation.plan_repair(culprits, to=_round(federation, to), work=work, per_round=per_round, config=config)
        back = RollBack(plan.parent, reason, plan.calibration)
        # In a dry run, too; and before anybody is banned for the sake of a rollback that cannot be.
        require_obeyable(federation, back)
        if config and plan.calibration is None:
            note(_unused(plan, work, per_round))
        if not dry_run:
            _carry_out(federation, plan, back, timeout)
    _tell(plan, named, dry_run=dry_run, as_json=common.json)


def _found(federation: Federation, *, as_json: bool) -> list[Culprit]:
    named = federation.culprits()
    if not as_json:
        rows = [(c.client, f"{c.refused} of {c.rounds}", ", ".join(c.reasons), c.first_round) for c in named]
        for line in table(("found", "refused", "reasons", "first round"), rows) if rows else ():
            say(line)
    return named


def _round(federation: Federation, ref: str | None) -> int | None:
    if ref is None:
        return None
    history = federation.history()
    history.close()
    return resolve_round(ref, history.lineage)


def _unused(plan: Repair, work: float, per_round: int) -> str:
    """Return why no training is told the settings of --set, and from which --work on there is a round of it."""
    least = math.ceil(per_round / plan.lost * 1000) / 1000 if plan.lost else math.inf
    said = f"--set is not used: {work:g} of {number_of(plan.lost, 'lost update')} comes to no calibration round"
    if least <= 1:
        return f"{said}; --work {least:g} comes to one"
    return f"{said}, whatever the --work"


def _carry_out(federation: Federation, plan: Repair, back: RollBack, timeout_s: float) -> None:
    """Order bans, then the rollback, each once the one before it was taken."""
    for client in plan.culprits:
        order(federation, BanClient(client, back.reason), timeout_s=timeout_s)
    order(federation, back, timeout_s=timeout_s)


def _tell(plan: Repair, named: list[Culprit] | tuple[()], *, dry_run: bool, as_json: bool) -> None:
    rounds = plan.calibration.rounds if plan.calibration else 0
    if as_json:
        told = {"culprits": list(plan.culprits), "parent": plan.parent, "abandoned": plan.abandoned, "lost": plan.lost}
        found = [{"client": c.client, "rounds": c.rounds, "refused": c.refused, "reasons": list(c.reasons)} for c in named]
        say_json({**told, "calibration_rounds": rounds, "found": found, "dry_run": dry_run})
        return
    pairs = [
        ("banned", ", ".join(plan.culprits)),
        ("goes on from", f"round {plan.parent}; leaves all up to round {plan.abandoned}"),
        ("lost", f"{number_of(plan.lost, 'update')} of other clients"),
        ("calibration", number_of(rounds, "round") if rounds else "none: training goes on as it did"),
    ]
    for line in facts(pairs):
        say(line)
    note("nothing was done: this is what it would come to" if dry_run else "done")


def _setting(text: str) -> tuple[str, Setting]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise UsageError(f"{text!r} is not NAME=VALUE or NAME=FROM:TO")
    first, colon, last = value.partition(":")
    if colon and (numbers := [number for number in map(_number, (first, last)) if number is not None])[1:]:
        return name, (float(numbers[0]), float(numbers[1]))
    number = _number(value)
    return name, value if number is None else number


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
