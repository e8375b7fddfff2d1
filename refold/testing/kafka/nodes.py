"""One node of a cluster: a Java process of our own, or a container of the image ``apache/kafka``. The settings are the same."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from refold.schemas.errors import BusError
from refold.testing.kafka.guard import Deed
from refold.testing.kafka.jars import kafka_version, recipe
from refold.testing.kafka.settings import to_properties

HEAP = "-Xms64m -Xmx384m"
QUICK = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Half the time to start on two cores; no difference in throughput was found at 1 MB a record, which copying and CRC decide."""
READ, RECORD = "-XX:SharedArchiveFile=", "-XX:ArchiveClassesAtExit="
"""Options of Java for an archive of the classes that a program loads, in the form in which it uses them."""
STOP_TIMEOUT_S = 30.0
LOG_LINES = 15

# The shell waits for a word before it becomes the program: by then the guard knows its pid, and if the launcher is killed
# before that, the word never comes. So there is no instant at which a broker could be left behind.
GATED = 'read -r word && exec "$@" </dev/null'


def open_gate(process: subprocess.Popen[bytes]) -> None:
    """Let run what was begun."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()


class Node(Protocol):
    """A node that was started at least once."""

    deed: Deed
    """What the guard has to do to be rid of it, once it has begun."""

    def format(self) -> subprocess.Popen[bytes] | None:
        """Begin to write its empty data folder, behind the gate; None if nothing is to be done."""

    def begin(self) -> subprocess.Popen[bytes]:
        """Begin it, behind the gate."""

    def is_running(self) -> bool:
        """Return whether its process is there, frozen or not."""

    def kill(self) -> None:
        """End it at once."""

    def freeze(self) -> None:
        """Stop it in its tracks."""

    def thaw(self) -> None:
        """Let it go on."""

    def terminate(self) -> None:
        """Ask it to shut down."""

    def wait(self) -> None:
        """Return once it has ended; end it if it takes too long."""

    def remove(self) -> None:
        """Leave nothing of it behind, its folder apart."""

    def log(self) -> str:
        """Return all that it has said."""


class _Logged:
    """What both kinds share: a folder with the node's settings and its log, and the process that writes the log."""

    def __init__(self, folder: Path, cluster_id: str, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.cluster_id = cluster_id
        self.deed: Deed = {}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.properties = folder / "server.properties"
        self.properties.write_text(to_properties(settings))

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        try:
            self._started.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._started.kill()
        self._started.wait()

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the node was never started"
        return self._process

    def _begin(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Begin a command behind the gate, in a session of its own: Ctrl-C is for the launcher to act on, not for the node."""
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", GATED, "sh", *command],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class JavaNode(_Logged):
    """A broker and controller in a Java process.

    Parameters
    ----------
    archive
        Java's option for reading or writing an archive of classes, or "".
    formatting
        More words for ``StorageTool format``: accounts.
    """

    def __init__(
        self,
        java: Path,
        jars: Path,
        folder: Path,
        cluster_id: str,
        settings: Mapping[str, str],
        *,
        archive: str = "",
        formatting: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, cluster_id, settings)
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        self._java = str(java)
        self._formatting = formatting
        self._class_path = ["-cp", f"{jars}/*"]
        # Native libraries are unpacked into java.io.tmpdir, perf data goes to /tmp: neither is to outlive a killed node.
        self._options = ["-XX:-UsePerfData", f"-Djava.io.tmpdir={temporary}", *QUICK, *([archive] if archive else [])]

    def format(self) -> subprocess.Popen[bytes]:
        """Begin to write its data folder, behind the gate; what is there already stays."""
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", self.cluster_id, "-c", str(self.properties)]
        tool += self._formatting
        # What this process loads is not what a broker loads: it must not write the archive.
        options = [option for option in self._options if not option.startswith(RECORD)]
        return self._begin([self._java, *options, "-Xmx64m", *self._class_path, *tool])

    def begin(self) -> subprocess.Popen[bytes]:
        """Begin it, behind the gate."""
        logging = f"-Dlog4j2.configurationFile={recipe() / 'log4j2.properties'}"
        program = [*self._class_path, "kafka.Kafka", str(self.properties)]
        self._process = self._begin([self._java, *self._options, *HEAP.split(), logging, *program])
        self.deed = {"kill": self._process.pid}
        return self._process

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self._started.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._started.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to shut down."""
        self._started.terminate()

    def remove(self) -> None:
        """Leave nothing of it behind: its process is all there was."""


class DockerNode(_Logged):
    """A broker and controller in a container on the host's network. Its data is the container's own, and goes with it."""

    DATA = "/var/lib/kafka/data"

    def __init__(self, docker: str, folder: Path, cluster_id: str, settings: Mapping[str, str]) -> None:
        super().__init__(folder, cluster_id, {**settings, "log.dirs": self.DATA})
        self._docker = docker
        self._name = f"refold-kafka-{settings['node.id']}-{cluster_id[:8]}-{os.getpid()}"
        self._exists = False
        self.deed = {"run": [docker, "rm", "--force", "--volumes", self._name]}

    def format(self) -> None:
        """Leave it to the image, which formats what is empty."""

    def begin(self) -> subprocess.Popen[bytes]:
        """Begin it, behind the gate."""
        if self._exists:
            self._process = self._begin([self._docker, "start", "--attach", self._name])
            return self._process
        mount = f"{self.properties}:/mnt/shared/config/server.properties:ro"
        options = ["--name", self._name, "--network", "host", "--volume", mount]
        environment = ["--env", f"CLUSTER_ID={self.cluster_id}", "--env", f"KAFKA_HEAP_OPTS={HEAP}"]
        self._process = self._begin([self._docker, "run", *options, *environment, f"apache/kafka:{kafka_version()}"])
        self._exists = True
        return self._process

    def kill(self) -> None:
        """End it at once."""
        self._do("kill", self._name)
        self._started.wait()

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self._do("pause", self._name)

    def thaw(self) -> None:
        """Let it go on."""
        self._do("unpause", self._name)

    def terminate(self) -> None:
        """Ask it to shut down."""
        self._do("kill", "--signal", "TERM", self._name)

    def remove(self) -> None:
        """Remove the container and its volumes."""
        if self._exists:
            self._do("rm", "--force", "--volumes", self._name)
            self._exists = False

    def _do(self, *words: str) -> None:
        done = subprocess.run([self._docker, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BusError(f"docker {' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")
