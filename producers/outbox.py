"""What a client has to send, on its disk until its receipt is there: a retry sends the same bytes.

One file an update::

    8 bytes   magic
    8 bytes   length of the manifest, little-endian
    8 bytes   number of chunks, then 8 bytes of length for each
    …         the manifest, the chunks
    32 bytes  BLAKE3 of all before

`put` writes beside the name first (`refold.schemas.files.replacing`): once the file has its name, the update will be sent; what
a crash left before, the next start removes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3

from refold.schemas.errors import ConfigurationError, StorageFullError
from refold.schemas.files import remove_leftovers, replacing

MAGIC = b"refold\x00\x01"
NAME = re.compile(r"[0-9a-f]{64}\.update")
DEFAULT_MAX_BYTES = 4 << 30
_HEAD_BYTES = 24


@dataclass(frozen=True, slots=True)
class Parcel:
    """An update as it is sent: its digest, manifest and chunks."""

    digest: bytes
    manifest: bytes
    chunks: tuple[bytes, ...]


class Outbox:
    """A folder of updates to send.

    Parameters
    ----------
    folder
        Made if it is not there. Nothing in it breaks where several clients, or two processes of one, share it; that two work
        under one name at a time is refused by `refold.producers.place`.
    max_bytes
        How much may wait in it.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder.glob("*.tmp"))

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self._folder

    def put(self, parcel: Parcel) -> None:
        """Keep an update until `drop`. Idempotent.

        Raises
        ------
        StorageFullError
            The disk is full, or `max_bytes` would be exceeded; nothing was kept.
        """
        name = self._folder / f"{parcel.digest.hex()}.update"
        data = _pack(parcel)
        waiting = sum(stat.st_size for path, stat in self._files() if path != name)
        if waiting + len(data) > self._max_bytes:
            raise StorageFullError(
                f"the outbox holds {waiting:,} bytes and may hold {self._max_bytes:,}",
                path=self._folder,
                hint="the server does not answer, or raise the outbox's limit",
            )
        try:
            with replacing(name) as file:
                file.write(data)
        except OSError as error:
            raise StorageFullError(
                f"an update could not be kept: {error.strerror}", path=name, hint="make room and submit again"
            ) from error

    def waiting(self, digests: Collection[bytes] | None = None) -> Iterator[Parcel]:
        """Yield what waits (or those of it that are named), oldest first and one at a time: together it may be gigabytes.

        A file that is not whole is renamed ``.broken`` and left out.
        """
        for path, _ in sorted(self._files(), key=lambda file: file[1].st_mtime_ns):
            if digests is not None and bytes.fromhex(path.stem) not in digests:
                continue
            try:
                yield _unpack(path.read_bytes(), path)
            except FileNotFoundError:
                continue  # Another process of this client was told of its receipt.
            except ConfigurationError:
                path.replace(path.with_suffix(".broken"))

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the outbox's own files; whatever else lies in the folder is left alone."""
        for path in self._folder.glob("*.update"):
            if not NAME.fullmatch(path.name):
                continue
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue

    def drop(self, digest: bytes) -> None:
        """Forget an update, its receipt being there. Idempotent."""
        (self._folder / f"{digest.hex()}.update").unlink(missing_ok=True)

    def set_aside(self, digest: bytes) -> None:
        """Keep an update that nobody can send under the name ``.broken``."""
        path = self._folder / f"{digest.hex()}.update"
        path.replace(path.with_suffix(".broken"))

    def digests(self) -> set[bytes]:
        """Return the digests of what waits."""
        return {bytes.fromhex(path.stem) for path, _ in self._files()}


def owner_of(federation: str, client: str) -> bytes:
    """Return the 16 bytes that name a client in the files beside its updates, for a folder that several share."""
    return blake3.blake3(f"{federation}\0{client}".encode()).digest(length=16)


def outbox_beside(key: str | Path) -> Path:
    """Return where a client's outbox lies if nobody says otherwise: beside its key file."""
    return Path(key).with_suffix(".outbox")


def _pack(parcel: Parcel) -> bytes:
    lengths = [len(chunk) for chunk in parcel.chunks]
    head = MAGIC + struct.pack(f"<{2 + len(lengths)}Q", len(parcel.manifest), len(lengths), *lengths)
    body = b"".join((head, parcel.manifest, *parcel.chunks))
    return body + blake3.blake3(body).digest()


def _unpack(data: bytes, path: Path) -> Parcel:
    body, digest = data[:-32], data[-32:]
    if not body.startswith(MAGIC) or blake3.blake3(body).digest() != digest:
        raise ConfigurationError("not a whole update", path=path)
    lengths = _lengths(body)
    if lengths is None:
        raise ConfigurationError("an update whose lengths are not those of its file", path=path)
    at = _HEAD_BYTES + 8 * (len(lengths) - 1)
    parts = []
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    return Parcel(bytes.fromhex(path.stem), parts[0], tuple(parts[1:]))


def _lengths(body: bytes) -> Sequence[int] | None:
    """Return the lengths of manifest and chunks, or None where they are not those of the bytes: a digest proves nothing."""
    if len(body) < _HEAD_BYTES:
        return None
    manifest_bytes, count = struct.unpack_from("<2Q", body, len(MAGIC))
    if count > (len(body) - _HEAD_BYTES) // 8:
        return None
    lengths = (manifest_bytes, *struct.unpack_from(f"<{count}Q", body, _HEAD_BYTES))
    return lengths if _HEAD_BYTES + 8 * count + sum(lengths) == len(body) else None
