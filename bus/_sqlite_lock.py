"""The writers' queue: one OS file lock that processes and threads wait on before they begin a SQLite write transaction.

SQLite's own busy handler sleeps and retries, which starves some of many writers; a file lock queues them. The kernel frees the
lock of a process that ends. One that is *stopped* (SIGSTOP, a suspended terminal job) keeps it: once its lease has passed,
those who wait name it, and end it if it is ours. A transaction that is cut off this way was not written at all.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refold.bus._process import Process, boot, this_process
from refold.bus._sqlite_read_only import COPY
from refold.schemas.errors import BusError, ConfigurationError, StorageFullError, TryAgainError

LEASE_S = 10.0
"""How long a holder may be stopped. Commits take milliseconds; 16 MB onto a slow disk takes one or two seconds."""

_LOOK_EVERY_S = 0.25
_RECORD_BYTES = 256
_log = logging.getLogger("refold.bus")


class WriteLock:
    """The lock of one bus object. Threads share it; other bus objects and processes have their own on the same file."""

    def __init__(self, path: Path, *, lease_s: float = LEASE_S) -> None:
        self._path = path
        self._lease_s = lease_s
        self._file = _open(path)
        self._me = str(this_process())
        self._threads = threading.Lock()
        self._pending: _Pending | None = None
        weakref.finalize(self, os.close, self._file)

    @contextmanager
    def hold(self, timeout_s: float = 30.0) -> Iterator[None]:
        """Hold the lock.

        1. Wait for the other threads of this bus.
        2. Wait for other processes: the kernel grants the file lock.
        3. Write down who holds it and until when. A crash here or later frees the lock; the words then name nobody that lives.
        4. Clear the words, then let go.

        Raises
        ------
        TryAgainError
            `timeout_s` ran out, or a stopped process holds the lock that we may not end; it is named.
        """
        deadline = time.monotonic() + timeout_s
        # 1.
        if not self._threads.acquire(timeout=max(0.0, timeout_s)):
            raise TryAgainError("another thread of this process kept writing", path=self._path, waited_s=timeout_s)
        try:
            # 2.
            self._take_file(deadline, timeout_s)
            # 3.
            self._write(f"{self._me}\n{time.monotonic() + self._lease_s}\n")
            try:
                yield
            finally:
                # 4. Nothing is raised from here: what was done under the lock is done, and must not look like a failure.
                with suppress(OSError):
                    os.pwrite(self._file, b" " * _RECORD_BYTES, 0)
        finally:
            # Also where an interrupt came between two lines above; without the lock it does nothing.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._threads.release()

    def _take_file(self, deadline: float, timeout_s: float) -> None:
        # While a thread is waiting on this very file, locking it here as well would mix up the two.
        if self._pending is None or self._pending.is_over():
            self._pending = None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._pending = _Pending(self._file)
            except OSError as error:
                hint = "put the bus on a local file system"
                raise ConfigurationError("this file system cannot lock files", path=self._path, hint=hint) from error
        try:
            while not self._pending.wait(min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
                self._look_at_holder()
                if time.monotonic() >= deadline:
                    raise self._too_long(timeout_s)
        except BaseException:
            if self._pending.abandon():
                fcntl.flock(self._file, fcntl.LOCK_UN)
            raise
        self._pending = None

    def _look_at_holder(self) -> None:
        """End the holder, or raise, if it has been stopped past its lease."""
        holder, lease_until = self._read()
        if holder is None or holder.boot != boot() or time.monotonic() < lease_until or not holder.is_stopped():
            return
        command = holder.command()
        # Between the two looks the lock may have passed on: only a holder that is still the same has kept it all along.
        if self._read() != (holder, lease_until):
            return
        if holder.is_ours():
            _log.warning("Ending process %d (%s): it was stopped while it held the bus's write lock", holder.pid, command)
            holder.end()
            return
        hint = f"resume it (kill -CONT {holder.pid}) or end it"
        raise TryAgainError(
            "A stopped process holds the bus's write lock", path=self._path, pid=holder.pid, command=command, hint=hint
        )

    def _too_long(self, timeout_s: float) -> TryAgainError:
        holder, _ = self._read()
        pid, command = (None, None) if holder is None else (holder.pid, holder.command())
        return TryAgainError(
            "the bus's write lock was not free in time", path=self._path, waited_s=timeout_s, pid=pid, command=command
        )

    def _write(self, text: str) -> None:
        try:
            os.pwrite(self._file, text.encode().ljust(_RECORD_BYTES), 0)
        except OSError as error:
            kind = StorageFullError if error.errno == errno.ENOSPC else BusError
            raise kind(f"Cannot write the lock file: {error.strerror}", path=self._path) from error

    def _read(self) -> tuple[Process | None, float]:
        lines = os.pread(self._file, _RECORD_BYTES, 0).decode(errors="replace").splitlines()
        try:
            return Process.parse(lines[0]), float(lines[1])
        except (IndexError, ValueError):
            return None, 0.0


class _Pending:
    """A wait for the file lock in a thread of its own, because flock has no timeout; it can be abandoned and taken up again."""

    def __init__(self, file: int) -> None:
        # A descriptor of its own: the lock object may be gone, and its number given to another file, when the wait ends.
        self._file = os.dup(file)
        self._mutex = threading.Lock()
        self._granted = threading.Event()
        self._abandoned = False
        self._over = False
        threading.Thread(target=self._run, name="refold-write-lock", daemon=True).start()

    def _run(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._mutex:
            if self._abandoned:
                fcntl.flock(self._file, fcntl.LOCK_UN)
                self._over = True
            else:
                self._granted.set()
        os.close(self._file)

    def is_over(self) -> bool:
        """Whether it was abandoned and has ended; otherwise take it up again."""
        with self._mutex:
            if not self._over:
                self._abandoned = False
            return self._over

    def wait(self, timeout_s: float) -> bool:
        """Return whether the lock was granted within the time."""
        return self._granted.wait(timeout_s)

    def abandon(self) -> bool:
        """Give up waiting. Returns True if the lock had just been granted, and is the caller's to release."""
        with self._mutex:
            if self._granted.is_set():
                self._over = True
                return True
            self._abandoned = True
            return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        hint = f"a lock and a write-ahead log lie beside the bus file; where its folder cannot be written, {COPY}"
        raise ConfigurationError(f"cannot open the lock file: {error.strerror}", path=path, hint=hint) from error
