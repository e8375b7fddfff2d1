"""Bus URLs: ``sqlite:FILE[?federation=NAME]``, ``memory:[NAME]``,
``kafka://HOST:PORT[,…]/FEDERATION[?replication=N]``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from refold.schemas.errors import ConfigurationError

FORMS = "sqlite:FILE[?federation=NAME], memory:[NAME] or kafka://HOST:PORT[,...]/FEDERATION[?replication=N]"


class BusUrl(NamedTuple):
    """A bus URL taken apart.

    Parameters
    ----------
    scheme
        ``sqlite``, ``memory`` or ``kafka``.
    location
        The file, the name in memory (may be empty) or the brokers.
    federation
        The federation named in the URL, or None.
    replication
        Copies of each partition that Kafka shall keep, or None.
    """

    scheme: str
    location: str
    federation: str | None = None
    replication: int | None = None


def parse_url(url: str) -> BusUrl:
    """Take a bus URL apart; ConfigurationError says what is wrong with it."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in ("sqlite", "memory", "kafka"):
        raise ConfigurationError("this is no bus URL", url=repr(url), hint=f"write {FORMS}")
    if scheme == "kafka":
        return _parse_kafka(url, rest)
    location, _, query = rest.partition("?")
    federation = _settings(url, query, ("federation",)).get("federation") or None
    if scheme == "sqlite" and location.startswith("//"):
        raise ConfigurationError(
            "A sqlite URL takes a path, not a host", url=repr(url), hint="write sqlite:/the/path or sqlite:path"
        )
    if scheme == "sqlite" and not location:
        raise ConfigurationError("the sqlite URL names no file", url=repr(url), hint=f"write {FORMS}")
    return BusUrl(scheme, unquote(location), federation)


def _parse_kafka(url: str, rest: str) -> BusUrl:
    address, _, query = rest.removeprefix("//").partition("?")
    brokers, _, federation = address.partition("/")
    if "@" in brokers:
        # Nothing of it is repeated: it may be a password.
        hint = "say who you are with user=NAME and password-file=FILE: --kafka, refold.toml or REFOLD_KAFKA_*"
        raise ConfigurationError("an account does not belong in the bus URL", hint=hint)
    if not rest.startswith("//") or not brokers or "" in brokers.split(","):
        raise ConfigurationError("the kafka URL names no broker", url=repr(url), hint=f"write {FORMS}")
    wrong = [broker for broker in brokers.split(",") if not _is_address(broker)]
    if wrong:
        raise ConfigurationError(
            "this is no HOST:PORT", url=repr(url), broker=wrong[0], hint="ports are 1 to 65535, mostly 9092"
        )
    found = _settings(url, query, ("replication",)).get("replication")
    if found is not None and not (found.isdecimal() and len(found) <= 2 and int(found) >= 1):
        raise ConfigurationError("replication must be a number of brokers", url=repr(url), hint=f"write {FORMS}")
    return BusUrl("kafka", brokers, unquote(federation) or None, int(found) if found else None)


def _is_address(broker: str) -> bool:
    host, _, port = broker.rpartition(":")
    return bool(host) and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65_535


def _settings(url: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    try:
        settings = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise ConfigurationError("the bus URL's settings cannot be read", url=repr(url), hint=f"write {FORMS}") from error
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigurationError(
            "unknown setting in the bus URL", url=repr(url), setting=", ".join(unknown), hint=f"write {FORMS}"
        )
    return settings


def sqlite_url(path: Path, federation: str | None) -> str:
    """Return the URL of a bus file."""
    # Only what would be read as something else is escaped, so that people can read the rest.
    location = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:{location}" + (f"?federation={quote(federation, safe='')}" if federation else "")
