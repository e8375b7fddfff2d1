"""A client checkpoint's file: whole or not at all, with the one before it beside it.

::

    8 bytes   magic
    32 bytes  BLAKE3 of all that follows
    8 bytes   length of the form, little-endian
    …         the form, msgpack
    …         the tensors, safetensors

Durable steps of `write_checkpoint`: 1. the bytes are written beside the name and synced; 2. what was there gets the name
``….previous``; 3. the new file gets the name; 4. the folder is synced. A crash between 2 and 3 leaves the previous one alone,
which `read_checkpoint` then takes. A damaged file is set aside as ``….broken`` when it is found, so that it never takes the
place of a whole one.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import Any

import blake3
import msgpack

from refold.producers.trees import Packed, unpack
from refold.schemas.errors import InvalidRecord, StorageFullError
from refold.schemas.files import sync_folder

log = logging.getLogger("refold.checkpoint")

MAGIC = b"refold\x03\x01"
_HEAD = struct.Struct("<8s32sQ")


def previous(path: Path) -> Path:
    """Return where the checkpoint before the newest lies."""
    return path.with_name(path.name + ".previous")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and all that lies beside it. Idempotent."""
    for suffix in ("", ".previous", ".broken", ".new"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def write_checkpoint(path: Path, packed: Packed) -> None:
    """Write a checkpoint in the place of the one before it, which is kept beside it.

    Raises
    ------
    StorageFullError
        There is no room; what was there stays.
    """
    form, tensors = msgpack.packb(packed.form, use_bin_type=True), packed.tensor_bytes()
    digest = blake3.blake3(len(form).to_bytes(8, "little")).update(form).update(tensors).digest()
    scratch = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # 1. Beside the name.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for part in (_HEAD.pack(MAGIC, digest, len(form)), form, tensors):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageFullError(f"the checkpoint cannot be written: {error}", path=path, hint="make room") from error
    # 2. The one before.
    if path.exists():
        path.replace(previous(path))
    # 3. The name.
    scratch.replace(path)
    # 4. The names durable.
    sync_folder(path.parent)


def read_checkpoint(path: Path) -> Any:
    """Return the newest tree that is whole; None where there is none. One that is damaged is passed over with a warning."""
    for place in (path, previous(path)):
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            continue
        try:
            return decode_checkpoint(data)
        except InvalidRecord as error:
            log.warning("the checkpoint %s is damaged and passed over: %s", place, error)
            place.replace(path.with_name(path.name + ".broken"))
    return None


def decode_checkpoint(data: bytes) -> Any:
    """Return the tree that a file's bytes hold.

    Raises
    ------
    InvalidRecord
        ``form``, or ``root-digest`` where the bytes are not those that were written.
    """
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise InvalidRecord("form", "not a client checkpoint")
    _, digest, length = _HEAD.unpack_from(data)
    if blake3.blake3(memoryview(data)[_HEAD.size - 8 :]).digest() != digest:
        raise InvalidRecord("root-digest", "its bytes are not those that were written")
    form, tensors = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length :]
    try:
        tree = msgpack.unpackb(form, raw=False, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidRecord("form", f"not msgpack: {type(error).__name__}") from error
    return unpack(tree, tensors)
