"""TLS for connections to Kafka: contexts made from PEM files, with words for what is wrong with a file.

A context is made anew when one of its files changed, so that the next connection takes a renewed certificate and nothing needs
to be started again. Connections that are open keep what they were made with.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from refold.bus.security import KafkaSecurity
from refold.schemas.errors import ConfigurationError
from refold.schemas.files import read_small
from refold.schemas.keys import UNREADABLE

_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class TlsContext:
    """What kafka-python uses of an `ssl.SSLContext`: `wrap_socket`.

    Raises
    ------
    ConfigurationError
        A file cannot be used; the error names its setting.
    """

    def __init__(self, security: KafkaSecurity) -> None:
        self._security = security
        self._lock = threading.Lock()
        self._seen = self._state()
        self._context = make_context(security)

    def wrap_socket(self, sock: Any, **how: Any) -> ssl.SSLSocket:
        """Return the socket with TLS around it."""
        with self._lock:
            seen = self._state()
            if seen != self._seen:
                self._context, self._seen = make_context(self._security), seen
            return self._context.wrap_socket(sock, **how)

    def _state(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self._security.ca, self._security.certificate, self._security.key))


def make_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer that checks the broker's certificate and name."""
    # For clients such a context checks both, and nothing here turns that off.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if security.ca is None:
        context.load_default_certs()
    else:
        _certificates("ca", security.ca)
        context.load_verify_locations(cafile=security.ca)
    if security.certificate is not None:
        _check_pair(security, security.certificate)
        # A password is always given: asked by OpenSSL, a person would have to type it.
        context.load_cert_chain(security.certificate, security.key, password=security.read_key_password() or "")
    return context


def own_name(security: KafkaSecurity) -> str | None:
    """Return as whom brokers know this client, as far as that can be said here: their rules may map a certificate's subject."""
    if security.user is not None:
        return f"User:{security.user}"
    if security.certificate is None:
        return None
    return f"the certificate's {_certificates('certificate', security.certificate)[0].subject.rfc4514_string()}"


def _check_pair(security: KafkaSecurity, path: str | Path) -> None:
    """Raise unless certificate and key belong together and the certificate is valid today."""
    own = _certificates("certificate", path)[0]
    first, last = own.not_valid_before_utc, own.not_valid_after_utc
    if not first <= datetime.now(UTC) <= last:
        what = f"the client's certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        raise _wrong("certificate", what, "have it renewed, or correct this machine's clock", path)
    key_path = security.key or path
    key = _private_key(security, key_path)
    if key.public_key().public_bytes(*_SPKI) != own.public_key().public_bytes(*_SPKI):
        hint = "name the key that the certificate was made for with key=FILE"
        raise _wrong("key", "the private key is not this certificate's", hint, key_path)


def _certificates(name: str, path: str | Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_bytes_of(name, path))
    except ValueError as error:
        hint = "such a file has a line -----BEGIN CERTIFICATE-----"
        raise _wrong(name, "the file holds no certificate in PEM form", hint, path) from error


def _private_key(security: KafkaSecurity, path: str | Path) -> Any:
    data, password = _bytes_of("key", path), security.read_key_password()
    if b"PRIVATE KEY-----" not in data:
        hint = "name the file that holds it with key=FILE: it has a line -----BEGIN PRIVATE KEY-----"
        raise _wrong("key", "the file holds no private key in PEM form", hint, path)
    encrypted = b"ENCRYPTED" in data
    try:
        return serialization.load_pem_private_key(data, password.encode() if password and encrypted else None)
    except UNREADABLE as error:
        hint = "name the file with its password: key-password-file=FILE" if encrypted else "have the file made anew"
        raise _wrong("key", "the private key cannot be opened", hint, path) from error


def _bytes_of(name: str, path: str | Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})"
        raise _wrong(name, what, f"name the right one with {name}=FILE", path) from error


def _stamp(path: str | Path | None) -> Iterable[int] | None:
    try:
        found = Path(path).stat() if path is not None else None
    except OSError:
        return None  # Being put in place at this moment, or gone: making the context tells.
    return found and (found.st_mtime_ns, found.st_ino, found.st_size)


def _wrong(name: str, what: str, hint: str, path: str | Path) -> ConfigurationError:
    return ConfigurationError(f"Kafka security: {what}", setting=name, path=path, hint=hint)
