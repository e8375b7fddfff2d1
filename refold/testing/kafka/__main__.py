"""``python -m refold.testing.kafka up``: brokers in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import click

from refold.schemas.errors import RefoldError, UsageError
from refold.testing.kafka.cluster import Cluster


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def kafka() -> None:
    """Real Kafka brokers on this machine, from Maven's jars or by Docker."""


@kafka.command()
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", show_default=True)
@click.option("--port", type=click.IntRange(1024, 65533), help="The first node's; the others' follow. Default: free ones.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Keep the data here. Default: thrown away.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A broker setting; may be repeated.")
def up(nodes: str, port: int | None, data: Path | None, settings: tuple[str, ...]) -> None:
    """Start brokers, print their bus URL once they answer, and stop them together on Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Cluster(int(nodes), port=port, data=data, settings=dict(map(_setting, settings))) as cluster:
        click.echo(cluster.url)
        click.echo("running; Ctrl-C stops", err=True)
        stop.wait()


def _setting(text: str) -> tuple[str, str]:
    name, is_there, value = text.partition("=")
    if not is_there:
        raise UsageError(f"--set {text!r} is not NAME=VALUE")
    return name, value


def main() -> None:
    """Run the command; Refold's errors end it with their exit code."""
    try:
        kafka(prog_name="python -m refold.testing.kafka")
    except RefoldError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
