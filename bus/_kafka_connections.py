"""kafka-python's connections with Refold's security, and with what they fail of kept: kafka-python only logs it."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from refold.bus._kafka_failures import explain, in_the_end
from refold.bus._kafka_tls import TlsContext
from refold.bus._kafka_transport import open_transport
from refold.bus.security import KafkaSecurity
from refold.schemas.errors import ConfigurationError, RefoldError

with warnings.catch_warnings():
    # As in `_kafka_errors`.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.net.manager import KafkaConnectionManager
    from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest

REFUSED_S = 1.0
"""How long a broker that refused an account is not asked again; kafka-python would never ask it again."""

_SASL_AUTHENTICATE = 36


def security_settings(security: KafkaSecurity) -> dict[str, Any]:
    """Return kafka-python's settings for it.

    Raises
    ------
    ConfigurationError
        A file cannot be used.
    """
    found: dict[str, Any] = {"security_protocol": security.protocol}
    if security.is_encrypted:
        found["ssl_context"] = TlsContext(security)
    if security.user is not None:
        found |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.user,
            "sasl_plain_password": security.read_password(),
        }
    return found


class Connections(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Connections to one cluster.

    Parameters
    ----------
    told
        Called, in the network's thread, when it is known why a connection failed: trying again would not help.
    """

    def __init__(self, net: Any, security: KafkaSecurity, told: Callable[[], None], **settings: Any) -> None:
        super().__init__(net, **settings)
        self._security = security
        self._told = told
        self._refused_at: dict[Any, float] = {}
        self.fault: RefoldError | None = None
        self.guess: RefoldError | None = None
        self._fault_at = 0.0

    def get_connection(self, node_id: Any, *how: Any, **named: Any) -> Any:
        """Return a connection, made if it is not there."""
        known = self._conns.get(node_id)
        if known is None:
            self._take_password()
        connection = super().get_connection(node_id, *how, **named)
        if connection is not known:
            connection.close_future.add_errback(lambda error: self._failed(node_id, error))
        return connection

    def _take_password(self) -> None:
        """Let the next connection have the password that is in its file now, if that can be read at this moment."""
        if self._security.password_file is not None:
            with suppress(ConfigurationError):
                self.config["sasl_plain_password"] = self._security.read_password()

    def _failed(self, node_id: Any, error: BaseException) -> None:
        self._fault_at = time.monotonic()
        found = self.cluster.broker_metadata(node_id)
        broker = f"{found.host}:{found.port}" if found else str(node_id)
        # The words and not the error: its traceback would keep sockets open.
        self.fault, self.guess = explain(error, self._security, broker), in_the_end(error, self._security, broker)
        if self.fault is not None:
            self._told()

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        context = self.config["ssl_context"] if self.ssl_enabled else None
        return await open_transport(self._net, node, self.config["socket_options"], context, timeout_at)

    def recent_fault(self, within_s: float) -> RefoldError | None:
        """Return what the last connection failed of, if that is not longer ago."""
        return self.fault if time.monotonic() - self._fault_at <= within_s else None

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        """Raise why a broker refused the account a moment ago; later it is asked again, as passwords can be mended."""
        if node_id not in self._auth_failures:
            self._refused_at.pop(node_id, None)
            return
        refused_at = self._refused_at.setdefault(node_id, time.monotonic())
        if time.monotonic() - refused_at < REFUSED_S:
            super().maybe_raise_auth_failure(node_id)
        self._auth_failures.pop(node_id, None)
        self._refused_at.pop(node_id, None)


class _NoSecrets(logging.Filter):
    """Keeps what an account is proven with out of kafka-python's logs, whatever level somebody sets."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(_is_secret(word) for word in record.args or ())


def _is_secret(word: object) -> bool:
    if isinstance(word, SaslAuthenticateRequest | SaslBytesRequest):
        return True
    return isinstance(word, bytes) and int.from_bytes(word[4:6], "big") == _SASL_AUTHENTICATE


for _name in ("kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(_NoSecrets())
