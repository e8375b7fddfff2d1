"""``refold checkpoint``: the server's signed word on the log, to keep anywhere else."""

from __future__ import annotations

import click

from refold.cli.files import write_text
from refold.cli.options import Common, common
from refold.cli.output import note
from refold.schemas.errors import TryAgainError
from refold.schemas.kept import to_lines


@click.command(short_help="Print the newest signed checkpoint of the log.")
@common
@click.option("-o", "--output", metavar="FILE", help="Write it to this file.")
@click.option("--all", "every", is_flag=True, help="Every checkpoint there is, one a line.")
def checkpoint(common: Common, output: str | None, every: bool) -> None:
    """Print the newest signed checkpoint, a line of JSON of some 600 bytes. Keep it where whoever runs the server cannot reach.

    `refold verify --against FILE` holds a log against it later. With --all a bad event is named more exactly.
    """
    with common.federation() as federation:
        found = federation.checkpoints()
    if not found:
        raise TryAgainError("no checkpoint yet", hint="the server writes the first one when it starts: `refold serve`")
    chosen = found if every else found[-1:]
    write_text(output, to_lines(chosen))
    if output is not None:
        note(f"wrote {output}: {len(chosen)} checkpoint{'s' if len(chosen) > 1 else ''}, up to event {found[-1].events - 1}")
