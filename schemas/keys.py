"""Ed25519 keys: clients sign updates, operators sign commands, servers sign checkpoints of the log.

Source: RFC 8032, as implemented by the `cryptography` package (OpenSSL), which refuses malleable signatures.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import blake3
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from refold.schemas.errors import ConfigurationError, NotFoundError
from refold.schemas.files import create_file, read_small

UPDATE_TAG = b"refold 2026 client update\0"
COMMAND_TAG = b"refold 2026 command\0"
CHECKPOINT_TAG = b"refold 2026 checkpoint\0"
HEARTBEAT_TAG = b"refold 2026 heartbeat\0"
SERVER_HEARTBEAT_TAG = b"refold 2026 server heartbeat\0"
HEALTH_TAG = b"refold 2026 health report\0"
STATE_TREE_TAG = b"refold 2026 state tree\0"
REQUEST_TAG = b"refold 2026 key request\0"
POSSESSION_TAG = b"refold 2026 key possession\0"

UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
"""What the cryptography package raises over bytes that are no key, or one of a kind that it does not know."""


class SigningKey:
    """A private key. `public` is its 32-byte public half, `key_id` 8 bytes that name it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.key_id = key_id(self.public)

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Return the key that a seed of 32 secret bytes makes, the same every time."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a PEM file (PKCS #8, unencrypted).

        Raises
        ------
        NotFoundError
            There is no such file.
        ConfigurationError
            It is not an Ed25519 private key.
        """
        try:
            data = read_small(path)
        except FileNotFoundError as error:
            raise NotFoundError("no key file", path=path, hint="make one with `refold enroll CLIENT --new-key FILE`") from error
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except UNREADABLE as error:
            raise ConfigurationError("not a private key in PEM form", path=path) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError("not an Ed25519 key", path=path)
        return cls(key)

    @classmethod
    def load_or_create(cls, path: str | Path) -> SigningKey:
        """Read the key, or make one with file mode 0600 where there is none."""
        try:
            return cls.load(path)
        except NotFoundError:
            key = cls.generate()
            key.save(path)
            return key

    def save(self, path: str | Path) -> None:
        """Write the key as PEM, readable by its owner only; an existing file is never overwritten."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        create_file(path, pem)

    def sign(self, tag: bytes, message: bytes) -> bytes:
        """Sign the tagged message; 64 bytes."""
        return self._private.sign(tag + message)


def _sodium() -> Any:
    """Return PyNaCl, or None where it is not installed."""
    try:
        importlib.import_module("nacl.bindings")
        return importlib.import_module("nacl")
    except ImportError:
        return None


SODIUM = _sodium()

WEAK_KEYS = frozenset(
    bytes.fromhex(y[:-2] + format(int(y[-2:], 16) | sign, "02x"))
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
    for sign in (0, 0x80)
)
"""Encodings of the points of small order: for such a public key anyone can make signatures over anything.

Source: J.-P. Aumasson et al., "Taming the many EdDSAs", 2020, section 2.2; the list is the one of libsodium.
"""


def is_weak(public: bytes) -> bool:
    """Whether a public key is one for which anyone can sign."""
    return public in WEAK_KEYS


def verify(public: bytes, tag: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is this key's over the tagged message; never for a key for which anyone can sign."""
    if public in WEAK_KEYS:
        return False
    try:
        _loaded(public).verify(signature, tag + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_beat(public: bytes, tag: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the same holds, by libsodium where PyNaCl is installed: it takes half the time.

    Only for what decides nothing that others decide again. Libraries agree on every signature that was made as RFC 8032 has it,
    and not on all that an attacker can make with a key of his own: verdicts in the log rest on `verify` alone.
    """
    if SODIUM is None:
        return verify(public, tag, message, signature)
    if public in WEAK_KEYS or len(signature) != 64:
        return False
    try:
        SODIUM.bindings.crypto_sign_open(signature + tag + message, public)
    except (SODIUM.exceptions.BadSignatureError, ValueError):
        return False
    return True


@lru_cache(maxsize=16_384)
def _loaded(public: bytes) -> Ed25519PublicKey:
    """Return a public key as OpenSSL holds it; who beats is asked for again and again."""
    return Ed25519PublicKey.from_public_bytes(public)


def log_key(secret: bytes) -> SigningKey:
    """Return the key that signs checkpoints of the log: every server that holds the secret has it, and no file more."""
    return SigningKey.from_seed(blake3.blake3(secret, derive_key_context="refold 2026 log key").digest())


def key_id(public: bytes) -> bytes:
    """Return the 8 bytes that name a public key."""
    return blake3.blake3(public, derive_key_context="refold 2026 key id").digest()[:8]


def load_public(path: str | Path) -> bytes:
    """Read a public key: PEM (public or private), 64 hexadecimal digits, or 32 raw bytes.

    Raises
    ------
    NotFoundError, ConfigurationError
    """
    try:
        data = read_small(path)
    except FileNotFoundError as error:
        raise NotFoundError("no key file", path=path) from error
    if b"PRIVATE KEY" in data:
        return SigningKey.load(path).public
    try:
        if b"PUBLIC KEY" in data:
            key = serialization.load_pem_public_key(data)
            if isinstance(key, Ed25519PublicKey):
                return key.public_bytes_raw()
        raw = data if len(data) == 32 else bytes.fromhex(data.decode("ascii").strip())
    except UNREADABLE as error:
        raise ConfigurationError("not a public key", path=path, hint="PEM, 64 hexadecimal digits or 32 bytes") from error
    if len(raw) != 32:
        raise ConfigurationError("not an Ed25519 public key of 32 bytes", path=path)
    return raw


def public_pem(public: bytes) -> bytes:
    """Return a public key as PEM."""
    key = Ed25519PublicKey.from_public_bytes(public)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
