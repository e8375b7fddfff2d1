"""The server's process: ``python -m refold.demo.server URL``. Runs all groups until it is told to stop, or killed."""

from __future__ import annotations

import signal
import sys
import threading

import refold


def main() -> None:
    """Serve until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with refold.connect(sys.argv[1]) as federation, federation.serve(member="server") as server:
        while not stop.is_set():
            if server.wait(0.1):
                return


if __name__ == "__main__":
    main()
