"""A stand-in for the program ``docker``: it writes down how it was called, and its containers answer as a broker would.

Usage: engine.py FOLDER WORD... where FOLDER holds ``calls`` and, for each container, ``NAME.pid`` and ``NAME.properties``.
"""

import contextlib
import os
import signal
import socket
import struct
import sys
from pathlib import Path

SIGNALS = {"pause": signal.SIGSTOP, "unpause": signal.SIGCONT}


def serve(properties: dict[str, str]) -> None:
    """Answer every request with the id of each voter, as a broker that knows of all of them does."""
    nodes = [int(voter.split("@")[0]) for voter in properties["controller.quorum.voters"].split(",")]
    brokers = b"".join(struct.pack(">ih1sih", node, 1, b"h", 0, -1) for node in nodes)
    answer = struct.pack(">ii", 1, len(nodes)) + brokers
    port = int(properties["listeners"].split(",")[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            link, _ = listener.accept()
            link.recv(1024)
            link.sendall(struct.pack(">i", len(answer)) + answer)
            link.close()


def become(folder: Path, name: str) -> None:
    """Be the container of this name until killed."""
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    lines = (folder / f"{name}.properties").read_text().splitlines()
    serve(dict(line.split("=", 1) for line in lines))


def main() -> None:
    """Do what the words say."""
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    if words[0] == "run":
        name, volume = (words[words.index(option) + 1] for option in ("--name", "--volume"))
        (folder / f"{name}.properties").write_text(Path(volume.split(":")[0]).read_text())
        become(folder, name)
    elif words[0] == "start":
        become(folder, words[-1])
    elif words[0] in ("kill", *SIGNALS):
        number = signal.SIGTERM if "TERM" in words else SIGNALS.get(words[0], signal.SIGKILL)
        os.kill(int((folder / f"{words[-1]}.pid").read_text()), number)
    elif words[0] == "rm":
        pid = folder / f"{words[-1]}.pid"
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink()


if __name__ == "__main__":
    main()
