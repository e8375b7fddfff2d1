"""The server's keys: the operator's, which signs commands, the secret seed of sketches, and what opens sealed updates."""

from __future__ import annotations

import os
from pathlib import Path

import blake3

from refold.bus import parse_url
from refold.consumers.sealing import SealingKeys
from refold.schemas.errors import ConfigurationError, NotFoundError
from refold.schemas.files import create_file, read_small
from refold.schemas.keys import SigningKey

OPERATOR, SECRET, SEALING = "operator.pem", "server.secret", "sealing"


def key_folder(url: str, folder: str | Path | None) -> Path:
    """Return where a federation's keys lie.

    As given, by ``REFOLD_KEYS``, beside the bus file as ``NAME.keys``, or in the home folder under the federation's name.
    """
    if folder is not None:
        return Path(folder)
    if os.environ.get("REFOLD_KEYS"):
        return Path(os.environ["REFOLD_KEYS"])
    target = parse_url(url)
    if target.scheme == "sqlite":
        return Path(target.location).with_suffix(".keys")
    return Path.home() / ".config" / "refold" / "keys" / (target.federation or "federation")


class Keyring:
    """A folder of keys."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def create(self) -> tuple[SigningKey, bytes]:
        """Return operator key and secret, making what is not there."""
        operator = SigningKey.load_or_create(self.folder / OPERATOR)
        path = self.folder / SECRET
        if not path.exists():
            create_file(path, os.urandom(32))
        return operator, self.secret()

    @property
    def sealing(self) -> SealingKeys:
        """The clients' sealing keys, in a folder of their own."""
        return SealingKeys(self.folder / SEALING)

    def operator(self) -> SigningKey:
        """Return the operator's key.

        Raises
        ------
        NotFoundError
            It is not in the folder.
        """
        if not (self.folder / OPERATOR).exists():
            raise NotFoundError("no operator key", path=self.folder / OPERATOR, hint="say where with --keys or REFOLD_KEYS")
        return SigningKey.load(self.folder / OPERATOR)

    def secret(self, expected: bytes | None = None) -> bytes:
        """Return the secret seed, 32 bytes.

        Raises
        ------
        NotFoundError
            It is not in the folder.
        ConfigurationError
            It is not the one whose digest genesis names.
        """
        path = self.folder / SECRET
        try:
            secret = read_small(path)
        except FileNotFoundError as error:
            raise NotFoundError("no server secret", path=path, hint="say where with --keys or REFOLD_KEYS") from error
        if len(secret) != 32 or (expected is not None and secret_digest(secret) != expected):
            raise ConfigurationError(
                "not this federation's secret", path=path, hint="point --keys at the folder that `refold init` made"
            )
        return secret


def secret_digest(secret: bytes) -> bytes:
    """Return what genesis says of the secret."""
    return blake3.blake3(secret, derive_key_context="refold 2026 server secret").digest()
