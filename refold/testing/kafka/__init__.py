"""Real Kafka brokers for tests, demonstrations and those without Docker: ``python -m refold.testing.kafka up --nodes 3``.

Nothing here imports a Kafka client.
"""

from refold.testing.kafka.cluster import Cluster
from refold.testing.kafka.runtime import JavaRuntime, find_runtime, why_unavailable

__all__ = ["Cluster", "JavaRuntime", "find_runtime", "why_unavailable"]
