"""The verbs, and how each is loaded on use."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any

import click

import refold
from refold.cli import settings
from refold.cli.errors import PIPE_CLOSED

VERBS: dict[str, tuple[str, str]] = {
    "init": ("refold.cli.init", "Make a federation from initial parameters in a file."),
    "serve": ("refold.cli.serve", "Run the server: all groups, or those named."),
    "replica": ("refold.cli.replica", "Follow the log and serve the newest model to local readers."),
    "client": ("refold.cli.client", "Run a client that trains with your function."),
    "enroll": ("refold.cli.enroll", "Let a key speak for a client."),
    "seal": ("refold.cli.seal", "Let a client encrypt its updates."),
    "erase": ("refold.cli.seal", "Erase what a client sent encrypted."),
    "prune": ("refold.cli.prune", "Let payloads of old rounds go."),
    "privacy": ("refold.cli.privacy", "Say what a client has spent of its privacy."),
    "rotate": ("refold.cli.rotate", "Replace a client's key by a new one."),
    "revoke": ("refold.cli.revoke", "Let a client's keys count no more."),
    "log": ("refold.cli.log", "Print the events of a log."),
    "show": ("refold.cli.show", "Explain a round, an update or a client."),
    "rebuild": ("refold.cli.rebuild", "Rebuild a round's model from the log."),
    "diff": ("refold.cli.diff", "Say what differs between two rounds, or two copies of a log."),
    "verify": ("refold.cli.verify", "Audit the whole federation."),
    "rollback": ("refold.cli.rollback", "Let training go on from an earlier round."),
    "policy": ("refold.cli.policy", "Show or change policies: healing, snapshots."),
    "repair": ("refold.cli.repair", "Take clients' influence out of the model."),
    "checkpoint": ("refold.cli.checkpoint", "Print the newest signed checkpoint of the log."),
    "prove": ("refold.cli.prove", "Prove an event to somebody without the log, or check such a proof."),
    "health": ("refold.cli.health", "Say how every node is, or one, and why."),
    "top": ("refold.cli.top", "Show rounds, groups, nodes and alerts, live."),
    "snapshots": ("refold.cli.snapshots", "List the snapshots."),
    "quarantine": ("refold.cli.quarantine", "List and show refused updates; ban and release clients."),
    "watch": ("refold.cli.watch", "Follow a node's log files and tell what is unusual in them."),
    "tail": ("refold.cli.tail", "Follow topics as they grow."),
    "doctor": ("refold.cli.doctor", "Examine bus, topics, logs, keys and clocks."),
    "export": ("refold.cli.export", "Copy the federation to a file or another bus."),
    "import": ("refold.cli.export", "Copy a federation from a file or another bus."),
    "demo": ("refold.demo.command", "See it all on one machine, faults included."),
}
"""Verb → module that holds its command under the verb's own name, and what it does."""


class Verbs(click.Group):
    """Loads a verb when it is called, so that ``refold --help`` loads none."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the verb; that whoever read its output has gone is no error to tell of, and click would make it a plain 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise click.exceptions.Exit(PIPE_CLOSED) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of a federation's life."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a verb."""
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(VERBS[cmd_name][0]), f"{name}_" if iskeyword(name) else name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, what) for verb, (_, what) in VERBS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb and give it its settings from ``refold.toml``."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and "--help" not in rest:
            ctx.default_map = _defaults(name, command)
        return name, command, rest


def _defaults(name: str, command: click.Command) -> dict[str, Any]:
    path = settings.find_file(Path.cwd())
    found = settings.load(path, VERBS)
    own = found.get(name, {})
    if isinstance(command, click.Group):
        everywhere = {key: own[key] for key in settings.EVERYWHERE if key in own}
        settings.check(path, name, own, settings.EVERYWHERE)
        return {name: {**own, **dict.fromkeys(command.commands, everywhere)}}
    options = [option.name for option in command.params if isinstance(option, click.Option) and option.name]
    settings.check(path, name, own, options)
    return {name: own}


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REFOLD", "max_content_width": 120},
    epilog="`refold VERB --help` says more. Settings come from refold.toml, then REFOLD_*, then flags.",
)
@click.version_option(refold.__version__, prog_name="refold", message="%(prog)s %(version)s")
def cli() -> None:
    """Event-sourced federated learning: the model is a fold over a log, so any round can be rebuilt bit for bit."""
