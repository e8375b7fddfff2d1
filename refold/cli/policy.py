"""``refold policy``: the policies that may change while a federation runs."""

from __future__ import annotations

from dataclasses import asdict

import click

from refold.bus.ledger import read_all
from refold.cli.init import pairs
from refold.cli.options import Common, common
from refold.cli.ordering import order
from refold.cli.output import facts, note, say, say_json
from refold.consumers.checkpoint_policy import SnapshotRules
from refold.consumers.healing import HealingPolicy
from refold.federation import Federation
from refold.schemas.plans import Settings, settings
from refold.schemas.policies import HEALING, SNAPSHOTS, SUBJECTS, ChangePolicy, PolicyChanged


@click.command(short_help="Show or change policies: healing, snapshots.")
@common
@click.argument("subject", required=False, type=click.Choice(SUBJECTS))
@click.argument("said", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--timeout", type=float, default=15.0, show_default=True, help="Seconds to wait for the server.")
def policy(common: Common, subject: str | None, said: tuple[str, ...], timeout: float) -> None:
    """Show all policies, or let SUBJECT have these settings from now on. Changing needs the operator's key.

    Settings that are not named become what they are where nothing is said. docs/RECOVERY.md says what each does, for instance
    `refold policy healing mode=automatic` and `refold policy snapshots recovery_s=5 keep_last=3 keep_spaced=2`.
    """
    with common.federation() as federation:
        if subject is not None and said:
            order(federation, ChangePolicy(subject, settings(pairs(said))), timeout_s=timeout)
            note(f"{subject} has these settings from now on")
        shown = {HEALING: asdict(healing_of(federation)), SNAPSHOTS: asdict(snapshots_of(federation))}
    for name in SUBJECTS if subject is None else (subject,):
        if common.json:
            say_json({"policy": name, **shown[name]})
            continue
        for line in facts([(f"{name} {key}", value) for key, value in shown[name].items()]):
            say(line)


def healing_of(federation: Federation) -> HealingPolicy:
    """Return what holds of healing now."""
    return HealingPolicy.of(_newest(federation, HEALING) or ())


def snapshots_of(federation: Federation) -> SnapshotRules:
    """Return what holds of snapshots now."""
    said = _newest(federation, SNAPSHOTS)
    return SnapshotRules.of(said) if said else SnapshotRules.founded(federation.genesis.snapshots)


def _newest(federation: Federation, subject: str) -> Settings | None:
    found = None
    for entry in read_all(federation.bus, federation.topics.accepted):
        for event in entry.events:
            if isinstance(event, PolicyChanged) and event.subject == subject:
                found = event.settings
    return found
