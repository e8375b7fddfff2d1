"""A bus file where this process can write nothing: on a read-only medium, or another account's."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from refold.schemas.errors import ConfigurationError

COPY = "copy it, with its -wal file if there is one, to a folder that can be written"


def is_read_only(path: Path) -> bool:
    """Whether neither a file nor anything beside it can be written."""
    return path.exists() and not os.access(path, os.W_OK) and not os.access(path.parent, os.W_OK)


def opening(path: Path) -> str:
    """Return the words with which SQLite opens a file that is only read.

    A write-ahead log is read with the shared memory of those who write to it. Where there is neither, SQLite would make both;
    it must be told that nobody changes the file, which is so on a read-only medium that no writer has left a log on.
    """
    is_settled = not path.with_name(path.name + "-wal").exists()
    return "immutable=1" if is_settled and os.statvfs(path).f_flag & os.ST_RDONLY else "mode=ro"


class NoLock:
    """The write lock of a bus that is only read: nobody gets it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self, timeout_s: float = 30.0) -> AbstractContextManager[None]:
        """Refuse.

        Raises
        ------
        ConfigurationError
            Always.
        """
        raise ConfigurationError("the bus file can only be read here", path=self._path, hint=f"to change it, {COPY}")
