"""Why no connection to a broker came about, in words that name the fix.

What can only be a wrong setting is told at once, as a `ConfigurationError`. What may also be a broker that is starting, or a
proxy whose broker is down, is tried again until the time is up, and then a `BusError`.
"""

from __future__ import annotations

import re
import ssl
import warnings
from collections.abc import Iterator

from refold.bus.security import KafkaSecurity
from refold.schemas.errors import BusError, ConfigurationError, RefoldError

with warnings.catch_warnings():
    # As in `_kafka_errors`.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors

# Source: OpenSSL, include/openssl/x509_vfy.h.
NOT_YET_VALID, EXPIRED, HOST_MISMATCH, ADDRESS_MISMATCH = 9, 10, 62, 64
TLS_RECORDS = range(0x1403, 0x1804)
"""First two bytes of a TLS record: its kind, 20 to 23, and the major version 3. No answer of Kafka's is that long."""

ASKS_FOR_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE")
REFUSES_CERTIFICATE = ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED", "ACCESS_DENIED")
TRY = "in refold.toml under [kafka], or as"


def explain(error: BaseException | None, security: KafkaSecurity, broker: str) -> RefoldError | None:
    """Return what a failed attempt to connect means, or None where it says nothing but that nobody answered."""
    for cause in _causes(error):
        if isinstance(cause, RefoldError):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(cause, broker)
        if isinstance(cause, ssl.SSLError) and (told := _alert(cause, security, broker)):
            return told
        if isinstance(cause, kafka.errors.KafkaError | ValueError) and (told := _refusal(cause, security, broker)):
            return told
    return None


def in_the_end(error: BaseException | None, security: KafkaSecurity, broker: str) -> BusError | None:
    """Return what it most likely means that every attempt failed of this; None if it may be anything."""
    if "DNS Resolution failure" in str(error):
        hint = "correct the address in the bus URL, or see whether this machine's name service knows it"
        return BusError("no machine of this name is known", broker=broker, hint=hint)
    closed = (ssl.SSLError, ConnectionResetError, BrokenPipeError)
    if not any(isinstance(cause, closed) or "socket disconnected" in str(cause) for cause in _causes(error)):
        return None
    if "Handshake failed" in str(error):
        hint = "does this port speak TLS? name the one that does, or say so with tls=false; otherwise see the broker's log"
    elif security.user is not None:
        hint = "does this port ask for TLS, or for no account? See the broker's log"
    elif security.is_encrypted:
        hint = f"does this port ask for an account? user=NAME and password-file=FILE, {TRY} --kafka user=NAME"
    else:
        hint = f"does this port ask for TLS (tls=true, ca=FILE) or an account (user=NAME, …)? Say so {TRY} --kafka"
    return BusError("the broker hung up on every connection", broker=broker, hint=hint)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, which kafka-python keeps in its arguments or merely in the context."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        inner = next((word for word in error.args if isinstance(word, BaseException)), None)
        error = inner or error.__cause__ or error.__context__


def _untrusted(error: ssl.SSLCertVerificationError, broker: str) -> RefoldError:
    said = error.verify_message
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        what = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        hint = "have it renewed on the broker; if it should be valid today, correct this machine's clock"
        return BusError(f"the broker's certificate, or its CA's, {what}", broker=broker, hint=hint)
    if error.verify_code in (HOST_MISMATCH, ADDRESS_MISMATCH):
        hint = "reach the broker under a name that its certificate holds, or have one issued for this name (subjectAltName)"
        return ConfigurationError(f"the broker's certificate is for another name: {said}", broker=broker, hint=hint)
    hint = f"name the file with the certificate of its CA: ca=FILE, {TRY} --kafka ca=FILE"
    return ConfigurationError(f"the broker's certificate is not trusted here: {said}", broker=broker, setting="ca", hint=hint)


def _alert(error: ssl.SSLError, security: KafkaSecurity, broker: str) -> RefoldError | None:
    reason = error.reason or ""
    if "ALERT" not in reason:
        return None
    where = {"broker": broker, "setting": "certificate"}
    if security.certificate is None and reason.endswith(ASKS_FOR_CERTIFICATE):
        hint = f"name yours and its key: certificate=FILE and key=FILE, {TRY} --kafka certificate=FILE"
        return ConfigurationError("the broker asks for a client's certificate", hint=hint, **where)
    if reason.endswith(ASKS_FOR_CERTIFICATE + REFUSES_CERTIFICATE):
        hint = "is it signed by a CA that the broker trusts, and not revoked?"
        return ConfigurationError(f"the broker refuses this client's certificate ({reason})", hint=hint, **where)
    # Bytes that changed on the way end a handshake in any of the other ways: it is tried again.
    hint = "tried again it may succeed; if not, see the broker's log (is TLS 1.2 or newer switched off there?)"
    return BusError(f"the broker ended the TLS handshake ({reason})", broker=broker, hint=hint)


def _refusal(error: BaseException, security: KafkaSecurity, broker: str) -> RefoldError | None:
    """Say what a broker refused in Kafka's own words."""
    user = security.user
    if isinstance(error, kafka.errors.SaslAuthenticationFailedError):
        return wrong_account(user, broker)
    if isinstance(error, kafka.errors.UnsupportedSaslMechanismError):
        hint = "set mechanism to one that it offers: mostly SCRAM-SHA-512 or SCRAM-SHA-256"
        return ConfigurationError(
            f"the broker does not offer {security.mechanism}", broker=broker, setting="mechanism", hint=hint
        )
    if isinstance(error, kafka.errors.IllegalSaslStateError):
        hint = "leave out user and password there, or name the port that asks for them"
        return ConfigurationError("this port of the broker asks for no account", broker=broker, setting="user", hint=hint)
    if isinstance(error, ValueError) and "Server sent wrong signature" in str(error):
        hint = "it does not know this account's password: is it the broker that you mean?"
        return ConfigurationError("the broker could not prove who it is", broker=broker, user=user, hint=hint)
    length = re.fullmatch(r".*Invalid frame length: (-?\d+)", str(error))
    if length and not security.is_encrypted and int(length[1]) >> 16 in TLS_RECORDS:
        hint = f"say so with tls=true, and ca=FILE where its CA is your own, {TRY} --kafka tls=true"
        return ConfigurationError("this port of the broker speaks TLS", broker=broker, setting="tls", hint=hint)
    return None


def wrong_account(user: str | None, broker: str | None = None) -> ConfigurationError:
    """Return the error for a user or password that a broker does not know."""
    hint = "correct user, password-file or mechanism; an administrator sets passwords with kafka-configs.sh --entity-type users"
    return ConfigurationError("the broker refused the user name or the password", broker=broker, user=user, hint=hint)
