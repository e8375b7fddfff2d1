"""Ends what a launcher leaves behind when it is killed, from a process of its own: this file, run as a script.

Each line on its standard input is a JSON array, ``[NAME, DEED]``: what is to be done when the input closes, that is, when the
launcher is gone, however it went. ``null`` as the deed strikes the name off. What was mentioned last is done first, as contexts
are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Deed = Mapping[str, Any]
"""``{"kill": PID}``, ``{"run": [PROGRAM, …]}`` or ``{"remove": FOLDER}``."""

PATIENCE_S = 5.0


class Guard:
    """The launcher's side: what it says is done once it is gone, or at `close`."""

    def __init__(self) -> None:
        # Isolated and without site-packages it starts in 20 ms; in a session of its own Ctrl-C does not reach it.
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def promise(self, name: str, deed: Deed) -> None:
        """Have this done in the end."""
        self._tell(name, deed)

    def forget(self, name: str) -> None:
        """Strike off what was promised under this name; before a pid could become another process's."""
        self._tell(name, None)

    def close(self) -> None:
        """Have done what was promised and not struck off, and return when it is."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, name: str, deed: Deed | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, deed]) + "\n")
        self._process.stdin.flush()


def kill(pid: int) -> None:
    """End a process, a stopped one too, and wait until it is gone."""
    deadline_s = time.monotonic() + PATIENCE_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
        while time.monotonic() < deadline_s and not _is_zombie(pid):
            os.kill(pid, 0)
            time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    """Return whether only its exit status is left, which a container's first process may never collect."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def do(deed: Deed) -> None:
    """Do one deed."""
    if "kill" in deed:
        kill(deed["kill"])
    elif "run" in deed:
        subprocess.run(deed["run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    elif "remove" in deed:
        shutil.rmtree(deed["remove"], ignore_errors=True)


def main() -> None:
    """Take notes until the launcher is gone, then act on them."""
    left: dict[str, Deed] = {}
    for line in sys.stdin:
        name, deed = json.loads(line)
        if deed is None:
            left.pop(name, None)
        else:
            left[name] = deed
    for deed in reversed(left.values()):
        do(deed)


if __name__ == "__main__":
    main()
