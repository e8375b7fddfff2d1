"""Options that every verb takes, and the federation that they name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from refold.bus import parse_url
from refold.federation import Federation, connect
from refold.schemas.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])


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
    """

    url: str | None
    keys: str | None
    json: bool

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
        return connect(self.bus_url(), keys=self.keys)


def common(function: F) -> F:
    """Give a command ``--bus``, ``--keys`` and ``--json``, and its function a `Common` first."""

    @functools.wraps(function)
    def with_common(*args: Any, bus: str | None, keys: str | None, json: bool, **kwargs: Any) -> Any:
        return function(Common(bus, keys, json), *args, **kwargs)

    wrapped: Any = with_common
    for option in (
        click.option("--json", is_flag=True, envvar="REFOLD_JSON", help="Write JSON."),
        click.option("--keys", metavar="DIR", envvar="REFOLD_KEYS", help="Keys of server and operator.  [beside the bus file]"),
        click.option("--bus", metavar="URL", envvar="REFOLD_BUS", help="sqlite:FILE, or kafka://HOST:PORT/FEDERATION."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
