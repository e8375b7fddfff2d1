"""Following a log file as it grows, through rotation and truncation, whatever is in it.

A file that is renamed or removed is read to its end before the one that took its name; one that became shorter is read from its
beginning. A line is at most `MAX_LINE_BYTES` of what is between two line breaks; the rest of an endless one is passed over
without being held. A file that is not there yet is waited for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refold.bus.clock import Clock, SystemClock
from refold.producers.logs.watch import LogWatch
from refold.schemas.errors import ConfigurationError

BLOCK_BYTES = 1 << 18
MAX_LINE_BYTES = 8_192
MOST_BLOCKS = 16
"""Read in one turn, so that several files share a thread."""

BEHIND_BYTES = 256 << 20
"""A reader so far behind skips to the end: what a node says is to be of now."""

UNFINISHED_S = 1.0
"""A line whose end does not come is taken for one after so long."""


class LogFollower:
    """Gives the lines of one file to a watch. Belongs to one thread.

    Parameters
    ----------
    from_start
        Begin with what is in the file already; else with what is appended from now on.

    Raises
    ------
    ConfigurationError
        The path is there and no regular file, or may not be read.
    """

    def __init__(self, path: str | Path, watch: LogWatch, *, from_start: bool = False, clock: Clock | None = None) -> None:
        self.path = Path(path)
        self._watch = watch
        self._clock = clock or SystemClock()
        self._identity = (0, 0)
        self._position = 0
        self._rest = b""
        self._is_passing = False
        self._rest_since_s = 0.0
        self.rotations = 0
        self.truncations = 0
        self._file = self._opened()
        if self._file is not None and not from_start:
            self._position = os.fstat(self._file).st_size

    def poll(self) -> bool:
        """Take in what was appended; return whether there is more at once.

        Raises
        ------
        ConfigurationError
            What has the file's name now cannot be read.
        """
        self._file = self._opened() if self._file is None else self._file
        if self._file is None:
            return False
        self._notice_truncation(self._file)
        for _ in range(MOST_BLOCKS):
            block = os.pread(self._file, BLOCK_BYTES, self._position)
            if not block:
                return self._at_end(self._file)
            self._position += len(block)
            self._take(block)
        return True

    def close(self) -> None:
        """Take in an unfinished line, and let go of the file. Idempotent."""
        self._finish()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int | None:
        try:
            # Not blocking: a pipe of this name would hold the thread until somebody writes to it.
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"cannot read {self.path}: {error.strerror}", path=self.path) from error
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            os.close(file)
            raise ConfigurationError(f"{self.path} is no regular file", path=self.path, hint="name the log file itself")
        self._identity, self._position = (about.st_dev, about.st_ino), 0
        return file

    def _notice_truncation(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._position:
            self.truncations += 1
            self._finish()
            self._position = 0
        elif size - self._position > BEHIND_BYTES:
            self._skip(file, size - BLOCK_BYTES)

    def _skip(self, file: int, to: int) -> None:
        """Pass over what is too much, counting its lines."""
        self._finish()
        while self._position < to:
            block = os.pread(file, min(4 << 20, to - self._position), self._position)
            if not block:
                return
            self._watch.pass_over(block.count(b"\n"))
            self._position += len(block)
        self._is_passing = True

    def _at_end(self, file: int) -> bool:
        if self._rest and self._clock.monotonic_s() - self._rest_since_s > UNFINISHED_S:
            self._finish()
            self._is_passing = True  # What comes up to its line break is the same line's.
        if not self._was_replaced():
            return False
        if os.fstat(file).st_size > self._position:
            return True  # Written between the last look and the rename.
        self.rotations += 1
        self.close()
        self._file = self._opened()
        return self._file is not None

    def _was_replaced(self) -> bool:
        try:
            about = os.stat(self.path)
        except OSError:
            return False  # Renamed, and none has its name yet: more may still be written to the one that is open.
        return (about.st_dev, about.st_ino) != self._identity

    def _take(self, block: bytes) -> None:
        if self._is_passing:
            _, found, block = block.partition(b"\n")
            if not found:
                return
            self._is_passing = False
        *lines, rest = (self._rest + block).split(b"\n")
        if lines:
            self._watch.take_all([line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r") for line in lines])
        if len(rest) > MAX_LINE_BYTES:
            self._watch.take_all([rest[:MAX_LINE_BYTES].decode(errors="replace")])
            rest, self._is_passing = b"", True
        if rest and not self._rest:
            self._rest_since_s = self._clock.monotonic_s()
        self._rest = rest

    def _finish(self) -> None:
        if self._rest:
            self._watch.take_all([self._rest.decode(errors="replace").rstrip("\r")])
        self._rest, self._is_passing = b"", False
