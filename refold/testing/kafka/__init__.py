"""Real Kafka brokers for tests, demonstrations and those without Docker: ``python -m refold.testing.kafka up --nodes 3``.

Nothing here imports a Kafka client.
"""

from refold.testing.kafka.authority import Authority
from refold.testing.kafka.cluster import Cluster
from refold.testing.kafka.runtime import JavaRuntime, find_runtime, why_unavailable
from refold.testing.kafka.secured import Listener, Secured
from refold.testing.kafka.tools import run_tool

__all__ = ["Authority", "Cluster", "JavaRuntime", "Listener", "Secured", "find_runtime", "run_tool", "why_unavailable"]
