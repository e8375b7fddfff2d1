"""Sealing keys at the server: the folder that holds them, what the log says of them, and opening what was sealed.

A key is *good* from the `ClientKeyed` that names it, and *void* from a `ClientErased`. An update that names a good key which
this server lacks is no bad input but a server that cannot do its work: it raises, and no position moves (invariant I7). All
servers of a federation hold the same files.

Destroying a key, in order: 1. its file is overwritten and synced; 2. it loses its name; 3. the folder is synced. A crash
between leaves a file of noise, which the next `destroy` removes. That is as much as a program can do: copies, backups and what
an SSD keeps aside are the operator's.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from refold.producers.lineage import KeyEvent, KeyListener
from refold.schemas.erasure import ClientErased, ClientKeyed, EraseClient, KeyClient
from refold.schemas.errors import ConfigurationError, InvalidRecord
from refold.schemas.files import read_small, sync_folder
from refold.schemas.sealing import SUITE, Said, SealingKey, chunk_info, sealing_key_id
from refold.schemas.updates import Sealing

log = logging.getLogger("refold.server")

GOOD, VOID, UNKNOWN = "good", "void", "unknown"
NAME = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{16})\.pem")


class KeyLackingError(ConfigurationError):
    """A sealing key that the log calls good is not in this server's folder."""


class SealingKeys:
    """The folder of private sealing keys, one file a key. Nothing is held in memory: what is destroyed is gone at once.

    Parameters
    ----------
    folder
        None for readers that hold no keys.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def create(self, client: str) -> SealingKey:
        """Make a key for a client; it is durable when this returns."""
        if self.folder is None:
            raise ConfigurationError("no folder for sealing keys", hint="say where with --keys or REFOLD_KEYS")
        key = SealingKey.generate()
        key.save(self.folder / f"{_owner(client)}.{key.key_id.hex()}.pem")
        return key

    def find(self, client: str, key_id: bytes) -> SealingKey | None:
        """Return a client's key, or None where it is not here."""
        if self.folder is None:
            return None
        path = self.folder / f"{_owner(client)}.{key_id.hex()}.pem"
        try:
            data = read_small(path)
        except FileNotFoundError:
            return None
        key = SealingKey.from_pem(data, path)
        if key.key_id != key_id:
            raise ConfigurationError("a sealing key lies under another one's name", path=path, hint="restore it from a copy")
        return key

    def require(self, client: str, key_id: bytes) -> SealingKey:
        """Return a client's key.

        Raises
        ------
        KeyLackingError
            It is not here, or a file of noise where it was; only the log can say why.
        """
        try:
            key = self.find(client, key_id)
        except ConfigurationError as error:
            what, hint = f"sealing key {key_id.hex()} cannot be read: {error.message}", "restore it from a copy"
            raise KeyLackingError(what, client=client, path=self.folder, hint=hint) from error
        if key is None:
            raise KeyLackingError(
                f"sealing key {key_id.hex()} is not in this server's key folder",
                client=client,
                path=self.folder,
                hint="copy it from the machine that `refold seal` ran on; if it is lost for good, `refold erase` the client",
            )
        return key

    def held(self, client: str) -> list[bytes]:
        """Return the ids of a client's keys that are here."""
        names = (NAME.fullmatch(path.name) for path in self.folder.glob("*.pem")) if self.folder is not None else ()
        return sorted(bytes.fromhex(name[2]) for name in names if name and name[1] == _owner(client))

    def destroy(self, client: str, key_ids: Collection[bytes]) -> int:
        """Destroy a client's keys of these ids, as far as they are here; return how many were. Idempotent.

        Several processes may do so at once: each key counts for one of them.
        """
        destroyed = 0
        for key_id in key_ids:
            path = self.folder / f"{_owner(client)}.{key_id.hex()}.pem" if self.folder is not None else None
            if path is not None:
                with suppress(FileNotFoundError):  # It never was here, or another was faster.
                    _destroy(path)
                    destroyed += 1
        return destroyed


def destroyer(keys: SealingKeys) -> KeyListener:
    """Return what, hearing of `rounds`, destroys the keys of a client that was erased.

    `rounds` says so, hence every round that needs them is made.
    """

    def hear(event: KeyEvent) -> None:
        if isinstance(event, ClientErased):
            destroyed = keys.destroy(event.client, event.key_ids)
            if destroyed:
                log.warning("destroyed %d sealing keys of %s", destroyed, event.client)

    return hear


def _owner(client: str) -> str:
    return blake3.blake3(client.encode()).digest(length=16).hex()


def _destroy(path: Path) -> None:
    # 1. Noise over it.
    with path.open("r+b") as file:
        file.write(os.urandom(os.fstat(file.fileno()).st_size))
        file.flush()
        os.fsync(file.fileno())
    # 2. Its name.
    path.unlink(missing_ok=True)
    # 3. The folder.
    sync_folder(path.parent)


@dataclass(slots=True)
class SealingLog:
    """What the log says of sealing keys: a fold over `accepted` (or `rounds`, which repeats it). Grows with the keys alone.

    Parameters
    ----------
    keys
        For each client its keys' ids in the order in which it got them, and whether each is void.
    """

    keys: dict[str, dict[bytes, bool]] = field(default_factory=dict)

    def fold(self, event: object) -> None:
        """Take an event in."""
        match event:
            case ClientKeyed():
                self.keys.setdefault(event.client, {})[sealing_key_id(event.public_key)] = False
            case ClientErased():
                held = self.keys.setdefault(event.client, {})
                held.update(dict.fromkeys(event.key_ids, True))

    def standing(self, client: str, key_id: bytes) -> str:
        """Return `GOOD`, `VOID` or `UNKNOWN`."""
        is_void = self.keys.get(client, {}).get(key_id)
        return UNKNOWN if is_void is None else VOID if is_void else GOOD

    def good(self, client: str) -> tuple[bytes, ...]:
        """Return the ids of a client's keys that are not void."""
        return tuple(key_id for key_id, is_void in self.keys.get(client, {}).items() if not is_void)

    def fault(self, client: str, sealing: Sealing | None) -> str:
        """Return the reason for which an update sealed so is refused at this place of the log, or ""."""
        if sealing is None:
            return ""
        return {GOOD: "", VOID: "erased", UNKNOWN: "sealing-key"}[self.standing(client, sealing.key_id)]


def keyed(log: SealingLog, order: KeyClient | EraseClient, command_id: bytes) -> list[object]:
    """Return the events of an order about sealing keys; none where there is nothing to key or erase any more."""
    if isinstance(order, KeyClient):
        known = log.standing(order.client, sealing_key_id(order.public_key)) != UNKNOWN
        return [] if known else [ClientKeyed(order.client, order.public_key, command_id)]
    key_ids = log.good(order.client)
    return [ClientErased(order.client, key_ids, order.reason, command_id)] if key_ids else []


def opened(chunks: Iterable[bytes], sealing: Sealing | None, federation: str, said: Said, keys: SealingKeys) -> Iterator[bytes]:
    """Yield the plain bytes of an update's chunks, one at a time; chunks that are not sealed as they are.

    Raises
    ------
    InvalidRecord
        ``sealing`` for an unknown suite, ``decryption`` for a chunk that does not open.
    KeyLackingError
        The key is not here; only the log can say why.
    """
    if sealing is None:
        return iter(chunks)
    if sealing.suite != SUITE:
        raise InvalidRecord("sealing", f"no suite {sealing.suite!r}")
    key = keys.require(said.client, sealing.key_id)
    return (key.open(chunk, chunk_info(federation, said, index)) for index, chunk in enumerate(chunks))
