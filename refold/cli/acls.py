"""``refold doctor --acls``: the commands that give each role its rights on a Kafka cluster."""

from __future__ import annotations

from collections.abc import Sequence

from refold.bus import parse_url
from refold.bus.acls import ROLES, check_role, command
from refold.cli.options import Common
from refold.cli.output import say, say_json
from refold.schemas.errors import ConfigurationError, UsageError


def tell_acls(common: Common, words: Sequence[str]) -> None:
    """Print the commands, by role; no broker is asked.

    Parameters
    ----------
    words
        ``ROLE=PRINCIPAL``: the roles that are printed, and whom they are given to; if there are none, every role with a name
        to be filled in.
    """
    federation, brokers = _named(common.bus_url())
    for role, principals in _principals(words).items():
        if not common.json:
            say(f"# {role}")
        for grant in ROLES[role]:
            line = command(grant, federation, brokers, principals)
            if common.json:
                say_json(
                    {
                        "role": role,
                        "principals": principals,
                        "operations": list(grant.operations),
                        "kind": grant.kind,
                        "names": grant.resources(federation),
                        "pattern": "prefixed" if grant.prefixed else "literal",
                        "why": grant.why,
                        "command": line,
                    }
                )
            else:
                say(f"# {grant.why}")
                say(line)


def _named(url: str) -> tuple[str, str]:
    parts = parse_url(url)
    if parts.scheme != "kafka":
        raise ConfigurationError(
            "only a Kafka cluster has ACLs", url=url, hint="a bus file has the rights of a file: chmod, chown"
        )
    if parts.federation is None:
        raise ConfigurationError("the bus URL names no federation", url=url, hint="write kafka://HOST:PORT/FEDERATION")
    return parts.federation, parts.location


def _principals(words: Sequence[str]) -> dict[str, list[str]]:
    """Return whom each role is given to."""
    found: dict[str, list[str]] = {}
    for word in words:
        role, is_there, name = word.partition("=")
        if not is_there or not name:
            raise UsageError(f"--principal {word!r} is not ROLE=PRINCIPAL", hint="--principal client=User:ward-7")
        found.setdefault(check_role(role), []).append(name if ":" in name else f"User:{name}")
    return found or {role: [f"User:{role.upper()}"] for role in ROLES}
