"""``refold init``: a federation from initial parameters in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refold.cli.options import Common, common
from refold.cli.output import facts, note, say, say_json
from refold.cli.parameters import read_parameters
from refold.consumers.agreement import DIVERGENCES
from refold.consumers.detectors.pattern import RATE
from refold.consumers.healing import MODES
from refold.consumers.selection import SELECTIONS
from refold.federation import Federation
from refold.founding import AGGREGATIONS, DEFENCES, create
from refold.plan import Plan
from refold.schemas.canonical import Scalar
from refold.schemas.errors import UsageError
from refold.schemas.events import SnapshotPolicy
from refold.schemas.identity import INSECURE
from refold.schemas.plans import DISCOUNTS
from refold.schemas.updates import CODECS
from refold.state.optimizers import OPTIMIZERS, from_settings


@click.command(short_help="Make a federation.")
@common
@click.option("--from", "source", metavar="FILE", required=True, help="Initial parameters: .npz or .safetensors.")
@click.option("--optimizer", type=click.Choice(sorted(OPTIMIZERS)), default="fedavg", show_default=True, help="The server's.")
@click.option("--lr", type=float, help="The server optimizer's learning rate.")
@click.option("--set", "more", metavar="NAME=VALUE", multiple=True, help="Another setting of the optimizer, such as beta1=0.9.")
@click.option("--minimum", type=int, default=1, show_default=True, help="Updates without which no round closes.")
@click.option("--rounds", type=int, help="Rounds after which the federation ends.  [goes on]")
@click.option("--deadline", type=float, default=600.0, show_default=True, help="Seconds a round waits; 0 waits for ever.")
@click.option("--share", type=float, default=1.0, show_default=True, help="Share of the living clients that a round selects.")
@click.option("--evaluate-every", type=int, default=0, show_default=True, help="Rounds between evaluations; 0 never.")
@click.option("--max-staleness", type=int, default=0, show_default=True, help="Rounds that an update's base may lie behind.")
@click.option(
    "--buffer", type=int, help="Close a round at so many updates, whoever is still at work.  [waits for all selected]"
)
@click.option("--discount", type=click.Choice(DISCOUNTS), default=DISCOUNTS[0], show_default=True, help="Of stale updates.")
@click.option("--where", metavar="CONDITION", multiple=True, help="What a client must say of itself: 'rows >= 1000'.")
@click.option("--heartbeat", type=float, default=2.0, show_default=True, help="Seconds between a client's signs of life.")
@click.option("--codec", type=click.Choice(CODECS), default="grid", show_default=True, help="Of deltas.")
@click.option("--density", type=float, help="Share of the parameters that an update carries with topk.  [0.01]")
@click.option("--config", metavar="NAME=VALUE", multiple=True, help="A setting that every task carries, such as epochs=2.")
@click.option(
    "--rule",
    metavar="TENSOR=RULE",
    multiple=True,
    help="max, sum or last (integers), frozen or private; TENSOR may be a pattern.",
)
@click.option("--healing", type=click.Choice(MODES), help="What happens when the model gets worse.  [ask]")
@click.option("--snapshots", metavar="NAME=VALUE", multiple=True, help="A setting of their policy; docs/RECOVERY.md has them.")
@click.option("--snapshot-every", type=int, default=10, show_default=True, help="Rounds between snapshots.")
@click.option("--snapshot-keep", type=int, default=3, show_default=True, help="Snapshots kept, the initial state besides.")
@click.option("--defence", type=click.Choice(DEFENCES), default="all", show_default=True, help="What judges updates.")
@click.option("--selection", type=click.Choice(SELECTIONS[1:]), help="Which accepted updates count.  [all, by examples]")
@click.option("--aggregation", type=click.Choice(AGGREGATIONS), default=AGGREGATIONS[0], show_default=True, help="Of updates.")
@click.option("--bad-share", type=float, default=0.2, show_default=True, help="Share of bad updates that these allow for.")
@click.option(
    "--false-alarm-rate", type=float, default=RATE, show_default=True, help="Share of honest updates refused at most."
)
@click.option(
    "--divergence", type=click.Choice(DIVERGENCES), default=DIVERGENCES[0], show_default=True, help="Of a client's held state."
)
@click.option("--insecure", is_flag=True, help="Do not ask who clients are: anyone takes part. Every start says so.")
@click.option(
    "--limit", "limits", metavar="NAME=NUMBER", multiple=True, help="What one client may take up; see docs/IDENTITY.md."
)
@click.option("--partitions", type=click.IntRange(1), default=4, show_default=True, help="Of topics spread over clients.")
def init(common: Common, source: str, **chosen: Any) -> None:
    """Make a federation from initial parameters in a file: topics, keys, initial state and the first event of its log."""
    initial = read_parameters(Path(source))
    optimizer_settings = pairs(chosen["more"]) | ({"lr": chosen["lr"]} if chosen["lr"] is not None else {})
    federation = create(
        common.bus_url(),
        initial,
        optimizer=from_settings(chosen["optimizer"], [(name, _number(name, v)) for name, v in optimizer_settings.items()]),
        plan=_plan(chosen),
        snapshots=pairs(chosen["snapshots"]) or _snapshots(chosen),
        healing=chosen["healing"] or "",
        defence=chosen["defence"],
        selection=chosen["selection"] or "",
        aggregation=chosen["aggregation"],
        bad_share=chosen["bad_share"],
        false_alarm_rate=chosen["false_alarm_rate"],
        divergence=chosen["divergence"],
        partitions=chosen["partitions"],
        insecure=chosen["insecure"],
        limits=_limits(chosen["limits"]),
        keys=common.keys,
        security=common.security(),
        rules={name: str(value) for name, value in pairs(chosen["rule"]).items()},
    )
    with federation:
        _tell(federation, as_json=common.json)


def pairs(words: tuple[str, ...]) -> dict[str, Scalar]:
    """Return ``NAME=VALUE`` words as settings: numbers and true or false where they look so, else text."""
    found: dict[str, Scalar] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"{word!r} is not NAME=VALUE")
        found[name] = _scalar(value)
    return found


def _scalar(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _number(name: str, value: Scalar) -> float:
    if isinstance(value, str):
        raise UsageError(f"{name}={value} is no number")
    return float(value)


def _plan(chosen: dict[str, Any]) -> Plan:
    return Plan(
        share=chosen["share"],
        minimum=chosen["minimum"],
        deadline_s=chosen["deadline"] or None,
        rounds=chosen["rounds"],
        evaluate_every=chosen["evaluate_every"],
        max_staleness=chosen["max_staleness"],
        heartbeat_s=chosen["heartbeat"],
        codec=chosen["codec"],
        density=chosen["density"],
        where=chosen["where"],
        buffer=chosen["buffer"],
        discount=chosen["discount"],
        config=pairs(chosen["config"]),
    )


def _limits(words: tuple[str, ...]) -> dict[str, int]:
    found = pairs(words)
    return {name: value if isinstance(value, int) else -1 for name, value in found.items()}


def _snapshots(chosen: dict[str, Any]) -> SnapshotPolicy:
    for name in ("snapshot_every", "snapshot_keep"):
        if chosen[name] < 1:
            raise UsageError(f"--{name.replace('_', '-')} {chosen[name]} is not 1 or more")
    return SnapshotPolicy(chosen["snapshot_every"], chosen["snapshot_keep"])


def _tell(federation: Federation, *, as_json: bool) -> None:
    schema = federation.genesis.schema
    told = {
        "federation": federation.name,
        "bus": federation.url,
        "keys": str(federation.keyring.folder.absolute()),
        "tensors": len(schema.tensors),
        "parameters": schema.size,
        "state": federation.genesis.state_digest.hex(),
    }
    if as_json:
        say_json(told)
        return
    for line in facts(list(told.items())):
        say(line)
    if not federation.genesis.identity.required:
        note(f"{federation.name} is {INSECURE}")
    note("next: `refold enroll NAME --new-key FILE` for each client, and `refold serve`")
