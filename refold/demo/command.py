"""The verb `refold demo`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import click

from refold.bus.security import PREFIX, KafkaSecurity
from refold.cli import settings
from refold.demo.names import EMBEDDED
from refold.schemas.errors import IntegrityError


@click.command()
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Decides everything drawn.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"), show_default=True)
@click.option("--rounds", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--clients", type=click.IntRange(3, 40), default=10, show_default=True)
@click.option("--faults", type=click.Choice(["all", "none"]), default="all", show_default=True)
@click.option(
    "--bus",
    default=EMBEDDED,
    show_default=True,
    metavar="BUS",
    help="sqlite; kafka://HOST:PORT[,...] (new federations there); or kafka, which starts brokers for as long as it runs.",
)
@click.option(
    "--brokers", type=click.Choice([1, 3]), default=1, show_default=True, help="With --bus kafka; of 3 one is killed."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report on stdout.")
def demo(seed: int, out: Path, rounds: int, clients: int, faults: str, bus: str, brokers: int, as_json: bool) -> int:
    """Train on real data under real faults, four times, and show what became of each fault.

    Clients send broken, doubled, huge, late and flipped updates; clients, the server and, of three brokers, one are killed.
    The folder OUT keeps the logs, the bus files (exported ones, with Kafka), report.json and a picture.
    """
    # Loaded here, so that `refold --help` loads none of it.
    from refold.demo.screen import Screen
    from refold.demo.show import Request, perform

    _take_security(bus)
    request = Request(out, seed, rounds, clients, faults == "all", bus, brokers)
    screen = Screen(rounds)
    # As Ctrl-C does: the processes of the runs are ended before this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with screen:
        show = perform(request, screen.told)
    if as_json:
        click.echo(json.dumps(show.report))
    screen.close_with(request, show)
    return 0 if all(one["equal"] for one in show.report["rebuilt"]) else IntegrityError.exit_code


def _take_security(bus: str) -> None:
    """Put into the environment, for the processes of the runs, how a cluster is spoken to; our own brokers ask for nothing."""
    there = bus.startswith("kafka:")
    security = settings.kafka_security(settings.find_file(Path.cwd()), settings.KAFKA, ()) if there else KafkaSecurity()
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    os.environ.update(security.to_environment())
