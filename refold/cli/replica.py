"""``refold replica``: keep the newest model beside those who use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import click

from refold.cli.files import require_target
from refold.cli.options import Common, common
from refold.cli.output import log_to_stderr, note
from refold.cli.serve import stopped_by_signals
from refold.replica import Model, Replica, ReplicaServer
from refold.schemas.errors import UsageError


@click.command(short_help="Follow the log and serve the newest model to local readers.")
@common
@click.option("-o", "--output", metavar="FILE", help="Always the newest model: a .safetensors file, replaced at once.")
@click.option("--http", metavar="[HOST:]PORT", help="Serve /model, /round, /livez and /readyz there; this machine alone.")
@click.option("--standby", is_flag=True, help="Stand by as a server, too, and take over where none is at work; needs the keys.")
@click.option("--member", default="", metavar="NAME", help="What the standing server calls itself, stable over restarts.")
@click.option("--until-end", is_flag=True, help="Stop once the federation has ended and its last round is here.")
def replica(common: Common, output: str | None, http: str | None, standby: bool, member: str, until_end: bool) -> None:
    """Follow the log, keep the newest round's model, and give it to local readers, until SIGINT or SIGTERM.

    A reader gets one round's model, whole, and its digest is the log's. A client's rights on the bus suffice, but for
    --standby.
    """
    if output is None and http is None and not standby:
        raise UsageError("a replica for nobody", hint="give -o FILE, --http PORT or --standby")
    if output is not None and not output.endswith(".safetensors"):
        raise UsageError("cannot keep this kind of file", path=output, hint="name a .safetensors file")
    if output is not None:
        require_target(Path(output))
    log_to_stderr()
    with ExitStack() as stack:
        federation = stack.enter_context(common.federation())
        kept = stack.enter_context(Replica(federation, path=output))
        stopped = stack.enter_context(stopped_by_signals())
        stack.enter_context(_served(kept, http))
        server = stack.enter_context(federation.serve(member=member)) if standby else None
        if server is not None:
            note(f"standing by as {server.member}")
        kept.run(stopped, until_end=until_end, told=_tell, meanwhile=lambda: server and server.wait(0.0))
    note("stopped")


def _tell(model: Model) -> None:
    note(f"round {model.round}, parameters {model.digest[:16]}")


def _served(kept: Replica, where: str | None) -> AbstractContextManager[object]:
    if where is None:
        return nullcontext()
    from refold.cli.metrics import address

    host, port = address(where)
    serving = ReplicaServer(kept, host, port)
    note(f"the newest model at http://{host}:{serving.port}/model")
    return serving
