"""Sealing: a client encrypts its chunks to a key that the server holds for this client alone. Destroying that key erases them.

Each chunk is one single-shot message of HPKE in base mode: a fresh X25519 key pair for every chunk, so that no nonce is ever
used twice, and ``enc ‖ ciphertext ‖ tag``, 48 bytes more than the chunk. Its *info* names federation, client, session, sequence
and the chunk's number, so that a chunk opens in its own place alone. Digests, signatures and the log are over the sealed bytes.

Source: RFC 9180 (Hybrid Public Key Encryption), DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, as implemented by the
`cryptography` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from refold.schemas.errors import ConfigurationError, InvalidRecord
from refold.schemas.files import create_file
from refold.schemas.keys import UNREADABLE
from refold.schemas.payload import CHUNK_BYTES

SUITE = "hpke-x25519-hkdf-sha256-aes-256-gcm"
OVERHEAD_BYTES = 48
"""What sealing adds to a chunk: an ephemeral public key of 32 bytes and a tag of 16."""

ROOM_BYTES = CHUNK_BYTES - OVERHEAD_BYTES
"""Largest chunk that can be sealed."""

TAG = b"refold 2026 sealed chunk\0"

_HPKE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class Said(Protocol):
    """What names an update: its body, or its origin in the log."""

    @property
    def client(self) -> str: ...
    @property
    def session_index(self) -> int: ...
    @property
    def session_nonce(self) -> bytes: ...
    @property
    def sequence(self) -> int: ...


class SealingKey:
    """The server's private half. `public` is its 32-byte public half, `key_id` 8 bytes that name it."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.key_id = sealing_key_id(self.public)

    @classmethod
    def generate(cls) -> SealingKey:
        """Make a new key."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes, path: Path) -> SealingKey:
        """Read PEM (PKCS #8, unencrypted).

        Raises
        ------
        ConfigurationError
            It is no X25519 private key.
        """
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except UNREADABLE as error:
            raise ConfigurationError("not a private key in PEM form", path=path) from error
        if not isinstance(key, X25519PrivateKey):
            raise ConfigurationError("not an X25519 key", path=path)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key as PEM, readable by its owner only; an existing file is never overwritten."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        create_file(path, pem)

    def open(self, chunk: bytes, info: bytes) -> bytes:
        """Return a sealed chunk's plain bytes.

        Raises
        ------
        InvalidRecord
            ``decryption``: it was sealed to another key or for another place, or changed since.
        """
        if not OVERHEAD_BYTES <= len(chunk) <= CHUNK_BYTES:
            raise InvalidRecord("decryption", f"a sealed chunk of {len(chunk):,} bytes")
        try:
            return _HPKE.decrypt(chunk, self._private, info=info)
        except (InvalidTag, ValueError) as error:
            raise InvalidRecord("decryption", "a chunk does not open with its client's key in this place") from error


def seal(public: bytes, chunk: bytes, info: bytes) -> bytes:
    """Return a chunk sealed to a public key of 32 bytes."""
    return _HPKE.encrypt(chunk, X25519PublicKey.from_public_bytes(public), info=info)


def chunk_info(federation: str, said: Said, index: int) -> bytes:
    """Return what a sealed chunk is bound to: the update, and the chunk's number in it."""
    return b"".join(
        (
            TAG,
            *(len(name).to_bytes(8, "little") + name for name in (federation.encode(), said.client.encode())),
            said.session_index.to_bytes(8, "little"),
            said.session_nonce,
            said.sequence.to_bytes(8, "little"),
            index.to_bytes(8, "little"),
        )
    )


def sealing_key_id(public: bytes) -> bytes:
    """Return the 8 bytes that name a sealing key."""
    return blake3.blake3(public, derive_key_context="refold 2026 sealing key id").digest()[:8]
