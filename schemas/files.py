"""Making a file whole or not at all, and never over another one; reading one that may be anything."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from refold.schemas.errors import ConfigurationError

SMALL_BYTES = 1 << 20
"""More than any key, secret or ``refold.toml`` takes."""


@contextmanager
def named(target: Path) -> Iterator[None]:
    """Let what the system refuses name the file that was asked for, and not the scratch file beside it."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise


def create_file(path: str | Path, data: bytes) -> None:
    """Write a new file that its owner alone may read.

    Durable steps: 1. the bytes are written beside the name and synced; 2. they get their name; 3. the folder is synced. A crash
    before 2 leaves a ``.new`` file that nobody reads.

    Raises
    ------
    FileExistsError
        There is such a file, and it stays as it is.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    with named(target):
        try:
            # 1. Beside its name.
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # 2. Its name.
            os.link(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
    # 3. The name durable.
    sync_folder(target.parent)


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write in the place of another, whole or not at all: what was there stays until all is written.

    Durable steps: 1. the bytes are written beside the name and, if `durable`, synced; 2. they get their name; 3. the folder is
    synced. A crash before 2 leaves a ``.tmp`` file, which `remove_leftovers` removes.

    Raises
    ------
    OSError
        It cannot be written; it names `path`, and nothing is left beside it.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with named(path):
        try:
            # 1. Beside its name.
            with scratch.open("wb") as file:
                mark_written(file)
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                # 2. Its name, before another process may take the file for a leftover.
                scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        # 3. The name durable.
        if durable:
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make durable what was named and removed in a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_small(path: str | Path) -> bytes:
    """Return a file's bytes; a device, a pipe or a mistaken name cannot fill the memory.

    Raises
    ------
    OSError
        It cannot be read.
    ConfigurationError
        It is larger than `SMALL_BYTES`.
    """
    with Path(path).open("rb") as file:
        data = file.read(SMALL_BYTES + 1)
    if len(data) > SMALL_BYTES:
        raise ConfigurationError(f"the file is larger than {SMALL_BYTES:,} bytes", path=path, hint="is it the right one?")
    return data


def mark_written(file: IO[Any]) -> None:
    """Let `remove_leftovers` of another process know that a scratch file is being written, as long as it is open.

    The lock goes with the process that holds it, however that ends.
    """
    with suppress(OSError):  # A file system without locks: there nothing counts as left over.
        fcntl.flock(file, fcntl.LOCK_SH)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove scratch files that a crash left, and none that another process is writing."""
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
