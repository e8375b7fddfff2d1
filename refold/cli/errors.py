"""How errors are told: one line for people, one object for programs, and an exit code."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

import click

from refold.jsonable import safe_text
from refold.schemas.errors import ConfigurationError, NotFoundError, RefoldError, TryAgainError

INTERRUPTED = 130
USAGE = 2
PIPE_CLOSED = 141
"""What a shell tells of a program that SIGPIPE ended. Not 0: whoever left did not hear whether the answer is good."""


def tell(error: BaseException, *, as_json: bool) -> int:
    """Write an error to stderr and return its exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return USAGE
    told = _described(error)
    if as_json:
        print(json.dumps({"error": told}), file=sys.stderr)
    else:
        print(f"refold: {_line(told)}", file=sys.stderr)
    return int(told["exit_code"])


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, RefoldError):
        where = {name: value if isinstance(value, int) else str(value) for name, value in error.where.items()}
        return _fields(type(error).__name__, error.message, where, error.hint, error.exit_code)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"see `{context.command_path} --help`" if context else ""
        if context and context.parent is None and isinstance(error, click.NoSuchOption):
            hint = "options come after the verb; " + hint
        message = error.format_message().strip().removesuffix(".")
        return _fields("UsageError", message[:1].lower() + message[1:], {}, hint, USAGE)
    assert isinstance(error, OSError)
    where = {"path": str(error.filename)} if error.filename else {}
    code, hint = _SYSTEM.get(error.errno or 0, (ConfigurationError.exit_code, "name another place, or ask who runs the system"))
    return _fields(type(error).__name__, error.strerror or str(error), where, hint, code)


_NO_RIGHT = (ConfigurationError.exit_code, "give this account the right to it, or name another place")
_NO_ROOM = (TryAgainError.exit_code, "make room there, or name another place")
_TOO_MANY = (TryAgainError.exit_code, "close what is not needed, or raise the limit (`ulimit -n`)")
_SYSTEM: dict[int, tuple[int, str]] = {
    errno.ENOENT: (NotFoundError.exit_code, "is the name right?"),
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: (ConfigurationError.exit_code, "nothing can be written there: name another place"),
    errno.ENOTDIR: (ConfigurationError.exit_code, "a part of the path is no folder: name another place"),
    errno.EISDIR: (ConfigurationError.exit_code, "it is a folder: name a file"),
    errno.ENAMETOOLONG: (USAGE, "name a shorter one"),
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
}
"""What the system refuses → exit code and remedy. Never 1: that is an answer, and here there is none."""


def _fields(kind: str, message: str, where: dict[str, Any], hint: str, exit_code: int) -> dict[str, Any]:
    return {"type": kind, "message": message, "where": where, "hint": hint, "exit_code": exit_code}


def _line(told: dict[str, Any]) -> str:
    text = told["message"]
    if told["where"]:
        text += " (" + ", ".join(f"{name} {value}" for name, value in told["where"].items()) + ")"
    if told["hint"]:
        text += f": {told['hint']}"
    return safe_text(text)
