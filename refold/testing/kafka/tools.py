"""Kafka's own command-line tools, run from its jars: for those without Kafka's ``bin`` folder."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from refold.schemas.errors import ConfigurationError, UsageError
from refold.testing.kafka.nodes import QUICK
from refold.testing.kafka.runtime import JavaRuntime, find_runtime

TOOLS = {
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-configs.sh": "org.apache.kafka.tools.ConfigCommand",
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
}
TIMEOUT_S = 120.0


def run_tool(words: Sequence[str], *, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line that begins with one of `TOOLS`, as Kafka's own script would; return what it said.

    Parameters
    ----------
    folder
        Where files that it names are.

    Raises
    ------
    UsageError
        It begins with something else.
    ConfigurationError
        There is no Java here, or no jars.
    """
    name, *rest = words
    if name not in TOOLS:
        raise UsageError(f"no tool {name!r}", hint=f"there are {', '.join(TOOLS)}")
    runtime = find_runtime()
    if not isinstance(runtime, JavaRuntime):
        raise ConfigurationError(
            "Kafka's tools are run from its jars", hint="install Java and Maven, or use those in the image"
        )
    program = [str(runtime.java.path), *QUICK, "-Xmx128m", "-cp", f"{runtime.jars}/*", TOOLS[name], *rest]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
