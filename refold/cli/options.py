"""Options that every verb takes, and the federation that they name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from refold.bus import KafkaSecurity, open_bus, parse_url
from refold.bus.contract import Bus
from refold.cli import settings
from refold.federation import Federation, connect
from refold.schemas.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])

KAFKA_HELP = "TLS and account: ca=FILE, certificate=FILE, key=FILE, user=NAME, password-file=FILE, …; may be repeated."


@dataclass(frozen=True, slots=True)
class Common:
    """What every verb is told.

    Parameters
    ----------
    url
        The bus, or None where nobody named one.
    keys
        The folder of the server's and operator's keys, or None for the place beside the bus.
    json
        Write JSON.
    kafka, other_kafka
        ``NAME=VALUE``: how a Kafka cluster is spoken to, as the flags say; and the second one, where a verb has two buses.
    """

    url: str | None
    keys: str | None
    json: bool
    kafka: tuple[str, ...] = ()
    other_kafka: tuple[str, ...] = ()

    def bus_url(self) -> str:
        """Return the bus URL.

        Raises
        ------
        ConfigurationError
            Nobody named one, or it is none.
        """
        if not self.url:
            hint = 'give --bus sqlite:FILE, set REFOLD_BUS, or write bus = "sqlite:FILE" in refold.toml'
            raise ConfigurationError("no bus is named", hint=hint)
        parse_url(self.url)
        return self.url

    def federation(self) -> Federation:
        """Find the federation; close it after use."""
        return connect(self.bus_url(), keys=self.keys, security=self.security())

    def other(self, url: str) -> Federation:
        """Find the federation on the second bus; close it after use."""
        return connect(url, keys=self.keys, security=self._other_security())

    def open_bus(self) -> Bus:
        """Open the bus itself, made if it is a file that is not there."""
        return open_bus(self.bus_url(), security=self.security())

    def open_other(self, url: str) -> Bus:
        """Open the second bus, made if it is a file that is not there."""
        return open_bus(url, security=self._other_security())

    def security(self) -> KafkaSecurity:
        """Return how the bus is spoken to, if it is a Kafka cluster."""
        return settings.kafka_security(settings.find_file(Path.cwd()), settings.KAFKA, self.kafka)

    def _other_security(self) -> KafkaSecurity:
        return settings.kafka_security(settings.find_file(Path.cwd()), settings.OTHER_KAFKA, self.other_kafka)


def common(function: F) -> F:
    """Give a command ``--bus``, ``--kafka``, ``--keys`` and ``--json``, and its function a `Common` first."""

    @functools.wraps(function)
    def with_common(
        *args: Any,
        bus: str | None,
        keys: str | None,
        json: bool,
        kafka: tuple[str, ...],
        other_kafka: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> Any:
        return function(Common(bus, keys, json, kafka, other_kafka), *args, **kwargs)

    wrapped: Any = with_common
    for option in (
        click.option("--json", is_flag=True, envvar="REFOLD_JSON", help="Write JSON."),
        click.option("--keys", metavar="DIR", envvar="REFOLD_KEYS", help="Keys of server and operator.  [beside the bus file]"),
        click.option("--kafka", metavar="NAME=VALUE", multiple=True, envvar=[], help=KAFKA_HELP),
        click.option("--bus", metavar="URL", envvar="REFOLD_BUS", help="sqlite:FILE, or kafka://HOST:PORT/FEDERATION."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def patient(until: str) -> Callable[[F], F]:
    """Return what gives a command ``--wait`` and ``--timeout``, and its function `timeout_s`: None where nobody waits.

    Parameters
    ----------
    until
        What is waited for, as the help says it.
    """

    def give(function: F) -> F:
        @functools.wraps(function)
        def with_patience(*args: Any, wait: bool, timeout: float, **kwargs: Any) -> Any:
            return function(*args, timeout_s=timeout if wait else None, **kwargs)

        wrapped: Any = with_patience
        for option in (
            click.option("--timeout", type=float, default=15.0, show_default=True, help="Seconds to wait."),
            click.option("--wait/--no-wait", default=True, help=f"Wait until {until}.  [wait]"),
        ):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return give


def other_kafka(function: F) -> F:
    """Give a command with two buses, below `common`, ``--other-kafka`` for the second one."""
    what = "The same for the other bus, which is shown nothing of this one's account."
    option = click.option("--other-kafka", metavar="NAME=VALUE", multiple=True, envvar=[], help=what)
    return option(function)
