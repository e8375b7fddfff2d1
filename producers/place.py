"""A client's place on its machine: one process at a time works in its name from one outbox.

The kernel keeps the lock and frees it with the process, however that ends, so that a killed client may be started again at
once. It is a record lock: children that a training forks, and that may outlive their parent, do not hold it. For the same
reason it does not tell two `Client` of one process apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from refold.producers.outbox import owner_of
from refold.schemas.errors import PlaceTakenError

SUFFIX = ".place"


class ClientPlace:
    """The place of one client in one folder.

    Parameters
    ----------
    folder
        The outbox's. Other clients may have their places in it.
    """

    def __init__(self, folder: str | Path, federation: str, client: str) -> None:
        self._client = client
        self._path = Path(folder) / f"{owner_of(federation, client).hex()}{SUFFIX}"
        self._give_back: Callable[[], object] | None = None

    def take(self) -> None:
        """Hold the place until `close`. Where a file system has no locks, nothing is held and nobody is kept out.

        Raises
        ------
        PlaceTakenError
            Another process holds it.
        """
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        # Also given back by a client that is forgotten without having been closed.
        self._give_back = weakref.finalize(self, os.close, file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            raise PlaceTakenError(
                "another process works as this client from this outbox",
                client=self._client,
                path=self._path,
                hint="stop it first; two under one name refuse each other's updates, round after round",
            ) from error

    def close(self) -> None:
        """Give the place back. Idempotent."""
        if self._give_back is not None:
            self._give_back()
