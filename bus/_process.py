"""Which process is this, is it still there, and is it stopped.

A process id alone names nothing for long, so it goes with the process's start time. Start times are read from the kernel in
clock ticks since boot: what psutil reports on Linux moves whenever someone sets the wall clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Process:
    """A process's identity.

    Parameters
    ----------
    host
        This boot of this machine, and the namespace in which `pid` means something.
    pid, started
        The process id, and when it started, in the kernel's own words.
    """

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.started}"

    @classmethod
    def parse(cls, text: str) -> Process:
        """Read what `str` wrote."""
        host, pid, started = text.split(" ")
        return cls(host, int(pid), started)

    def is_gone(self) -> bool:
        """Whether the process has surely ended. One of another container cannot be seen, so it is not."""
        if self.boot != boot():
            return True
        return self.host == host() and _started(self.pid) != self.started

    @property
    def boot(self) -> str:
        """The boot during which the process was started."""
        return self.host.partition("/")[0]

    def is_ours(self) -> bool:
        """Whether the process is there, in our namespace, and runs as the same user."""
        if self.host != host() or self.is_gone():
            return False
        try:
            return psutil.Process(self.pid).uids().real == os.getuid()
        except psutil.Error:
            return False

    def is_stopped(self) -> bool:
        """Whether the process is there and stopped by a signal (one under a debugger is not)."""
        if self.host != host() or self.is_gone():
            return False
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.Error:
            return False

    def command(self) -> str:
        """The command line, shortened, or what is known instead."""
        try:
            return " ".join(psutil.Process(self.pid).cmdline())[:200]
        except psutil.Error:
            return "unknown"

    def end(self) -> None:
        """Send SIGKILL to this one process, if it still is the one that was meant."""
        if not self.is_gone():
            os.kill(self.pid, signal.SIGKILL)


def this_process() -> Process:
    """Return the identity of the calling process."""
    return Process(host(), os.getpid(), _started(os.getpid()))


@cache
def boot() -> str:
    """Return a name of this boot of this machine: leases on the monotonic clock mean nothing after the next."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    if sys.platform == "darwin":
        answer = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    return str(int(psutil.boot_time()) // 60)


@cache
def host() -> str:
    """Return this boot and the namespace of process ids, which differs between containers."""
    try:
        return f"{boot()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{boot()}/0"


def _started(pid: int) -> str:
    """Start time of a process, or nothing if there is none (a zombie has ended)."""
    try:
        # The command's name, in parentheses, may hold anything; the fields after it are numbered from 3 in proc(5).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        pass
    return _started_elsewhere(pid) if not Path("/proc/self/stat").exists() else ""


def _started_elsewhere(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.Error:
        return ""
