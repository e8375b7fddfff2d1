"""An answer in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import kafka.errors

from refold.bus._kafka_errors import Again, Unanswered
from refold.bus._kafka_failures import wrong_account


class Reply:
    """An answer in time. `wake` is called, in the network's thread, when it is there."""

    __slots__ = ("_done", "_error", "_value", "_wake")

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._wake = wake

    @property
    def is_there(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._done.is_set()

    def result(self, timeout_s: float) -> Any:
        """Wait for the answer.

        Raises
        ------
        Unanswered
            It did not come in time, or the connection broke meanwhile.
        Again
            No connection to that broker for now: it was not asked.
        ConfigurationError
            It does not know this account or its password (any more).
        """
        if not self._done.wait(timeout_s):
            raise Unanswered(f"no answer within {timeout_s:g} s")
        if self._error is None:
            return self._value
        if isinstance(self._error, kafka.errors.NodeNotReadyError | kafka.errors.UnknownBrokerIdError):
            raise Again(str(self._error)) from self._error
        if isinstance(self._error, kafka.errors.SaslAuthenticationFailedError):
            raise wrong_account(None) from self._error
        if isinstance(self._error, kafka.errors.BrokerResponseError) and not isinstance(
            self._error, kafka.errors.RequestTimedOutError
        ):
            raise self._error
        raise Unanswered(f"{type(self._error).__name__}: {self._error}") from self._error

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Say what came."""
        self._value, self._error = value, error
        self._done.set()
        if self._wake is not None:
            self._wake()
