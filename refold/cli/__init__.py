"""The command line. `refold.cli.verbs` lists the verbs; each lives in a module of its own and is loaded when it is used.

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 negative answer, 2 usage, 3 integrity failure, 4 not found,
5 another writer holds the place, 69 broker unavailable, 75 try again, 78 configuration, 130 interrupted, 141 whoever read the
output has gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    from refold.cli.errors import PIPE_CLOSED

    words = list(sys.argv[1:] if argv is None else argv)
    code = run(words)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or PIPE_CLOSED
        _ignore_stdout()
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are told on stderr."""
    import click

    from refold.cli.errors import PIPE_CLOSED, tell
    from refold.cli.verbs import cli
    from refold.schemas.errors import RefoldError

    as_json = "--json" in words
    try:
        code = cli.main(list(words), prog_name="refold", standalone_mode=False)
    except (RefoldError, click.ClickException, OSError, KeyboardInterrupt, click.Abort) as error:
        return tell(error, as_json=as_json)
    if code == PIPE_CLOSED:
        _ignore_stdout()
    return code if isinstance(code, int) else 0


def _ignore_stdout() -> None:
    """Let the interpreter flush into nothing at its end: whoever read our output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
