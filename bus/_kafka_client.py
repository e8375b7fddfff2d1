"""Requests to a Kafka cluster: the one place where connections are made, and where each wait has an end.

kafka-python's own consumer and producer have calls without time-outs, run rebalance listeners where no call is possible, do not
notice that a static member was fenced, and may send later batches after one was given up. So Refold takes from kafka-python
what is below them (connections, security, requests as objects) and does the rest itself. Every answer is waited for with a
bound, in the caller's thread; the network runs in a thread of its own. A broker that freezes therefore costs a caller its bound
and an error, never its life, and no watchdog is needed.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from refold.bus._kafka_connections import Connections, security_settings
from refold.bus._kafka_errors import Again, NoAnswer, Unanswered, check, no_answer, refused, unreachable
from refold.bus._kafka_reply import Reply
from refold.bus._kafka_tls import own_name
from refold.bus._store import no_topic
from refold.bus.contract import Place
from refold.bus.security import KafkaSecurity
from refold.schemas.errors import RefoldError, UsageError

with warnings.catch_warnings():
    # As in `_kafka_errors`.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors
    from kafka.net.selector import NetworkSelector
    from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

CONNECT_S = 8.0
"""How long to look for a broker: with a process's start around it, ten seconds."""

ANSWER_S = 10.0
"""How long a broker may take to answer a question that it can answer at once."""

LISTEN_S = 1.0
TRIES = 3
"""Brokers that are asked at least, before a question that any may answer finds none."""

STOP_S = 2.0
PAUSE_S = (0.005, 0.01, 0.02, 0.05, 0.1)
RECEIVE_BYTES = 128 << 20
"""Largest answer: what a fetch asks for at most, and one batch on top."""

T = TypeVar("T")

# kafka-python logs each failure several times; here each becomes one exception. Whoever sets a level gets it.
if logging.getLogger("kafka").level == logging.NOTSET:
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


class TopicNode(NamedTuple):
    """A topic's partitions: the broker that leads each, -1 while there is none, and how many replicas."""

    leaders: dict[int, int]
    replicas: int


class Coordinator(NamedTuple):
    """Two connections to a group's coordinator, beside the broker's own.

    A broker answers what comes over one connection in order, so that a join that it holds back, or a fetch that waits for
    records, would hold up heartbeats and commits.
    """

    patient: str
    prompt: str


def settings(brokers: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of every connection."""
    return {
        "bootstrap_servers": list(brokers),
        "client_id": f"refold-{os.getpid()}",
        "reconnect_backoff_ms": 20,
        "reconnect_backoff_max_ms": 1000,
        "socket_connection_setup_timeout_ms": 3000,
        "socket_connection_setup_timeout_max_ms": 5000,
        "request_timeout_ms": 30_000,
        # Brokers close connections that idle for ten minutes.
        "connections_max_idle_ms": 540_000,
        "metadata_max_age_ms": 60_000,
        "receive_message_max_bytes": RECEIVE_BYTES,
        # Threads share the bus's own connection, and a full one would refuse; producers keep within five by themselves.
        "max_in_flight_requests_per_connection": 10_000,
    }


class KafkaClient:
    """Connections to one cluster, and who leads what. Thread-safe.

    Raises
    ------
    BusError
        No broker answered within `CONNECT_S`.
    ConfigurationError
        The security settings are wrong, or not those of the cluster.
    """

    def __init__(self, brokers: tuple[str, ...], security: KafkaSecurity | None = None) -> None:
        self.brokers = brokers
        self._security = security or KafkaSecurity()
        self._secured = security_settings(self._security)
        self.account = own_name(self._security)
        self._topics: dict[str, TopicNode] = {}
        self._coordinators: dict[str, Coordinator] = {}
        self._pid = os.getpid()
        # One address after the other: kafka-python draws one, and gives one that never answers all the time there is. Those
        # where nobody listens come last.
        errors: list[BaseException] = []
        order = random.sample(brokers, len(brokers))
        for number, broker in enumerate(order):
            if number < len(brokers) - 1 and not _listens(broker):
                order.append(broker)
                continue
            error = self._connect(broker, CONNECT_S / len(brokers))
            if error is None:
                return
            errors.append(error)
        told = [error for error in errors if isinstance(error, RefoldError)]
        # What somebody can mend here says more than what another broker, which may just be down, did not say.
        raise min(told, key=lambda error: -error.exit_code, default=unreachable(brokers, CONNECT_S)) from errors[0].__cause__

    def _connect(self, broker: str, timeout_s: float) -> BaseException | None:
        """Connect to the cluster through one broker; return why not."""
        done = threading.Event()
        configured = settings((broker,)) | self._secured
        self._net = NetworkSelector(**configured)
        self._manager = Connections(self._net, self._security, done.set, **configured)
        self._net.start()
        try:
            future = self._manager.bootstrap_async(timeout_s * 1000, False).add_both(lambda _: done.set())
            if done.wait(timeout_s + 1) and future.succeeded():
                return None
        except BaseException:
            self.close()
            raise
        self.close()
        return self._manager.fault or self._manager.guess or future.exception or Unanswered(f"{broker} did not answer")

    def send(self, request: Any, node: int | str | None, timeout_s: float, wake: Callable[[], None] | None = None) -> Reply:
        """Send a request to a broker, or to any if `node` is None; the answer comes in time.

        A broker that has not answered after `timeout_s` loses its connection, and all that wait on it are told.
        """
        if os.getpid() != self._pid:
            raise UsageError("the bus was opened in another process", hint="open it after the fork")
        reply = Reply(wake)
        try:
            future = self._net.call_soon_with_future(self._manager.send, request, node, timeout_s * 1000)
        except Exception as error:
            reply.settle(None, error)
            return reply
        future.add_callback(reply.settle)
        future.add_errback(lambda error: reply.settle(None, error))
        return reply

    def ask(self, request: Any, node: int | str | None, timeout_s: float = ANSWER_S) -> Any:
        """Send a request and wait for its answer (see `Reply.result`)."""
        return self.send(request, node, timeout_s).result(timeout_s + 1)

    def persist(self, attempt: Callable[[float], T], what: str, timeout_s: float = ANSWER_S, **where: object) -> T:
        """Call `attempt`, with a part of the seconds left, until it neither raises `Again` nor finds no answer, or time is up.

        Only for what may be asked twice.

        Raises
        ------
        BusError
            It did not succeed in time.
        """
        deadline = time.monotonic() + timeout_s
        for number in range(1_000_000):
            left_s = deadline - time.monotonic()
            if self.is_closed:
                raise UsageError("the bus is closed")
            try:
                # One broker that never answers gets a part of the time; asked again, it may be another's turn.
                return attempt(max(min(left_s, timeout_s / TRIES), 0.05))
            except (Again, Unanswered, NoAnswer) as error:
                pause_s = PAUSE_S[min(number, len(PAUSE_S) - 1)]
                if deadline - time.monotonic() <= pause_s:
                    raise self.no_answer(what, timeout_s, error, **where) from error
                # What is known of the cluster may be why.
                self._refresh_brokers()
                time.sleep(pause_s)
            except kafka.errors.KafkaError as error:
                raise refused(what, error, account=self.account, **where) from error
        raise AssertionError("unreachable")

    def no_answer(self, what: str, timeout_s: float, error: BaseException, **where: object) -> NoAnswer:
        """Return the error for a question that found no answer in time, with why connections fail now, if they do."""
        fault = self._manager.recent_fault(timeout_s)
        return no_answer(what, timeout_s, self.brokers, fault or error, **where)

    def _refresh_brokers(self) -> None:
        with suppress(RuntimeError):  # Another thread closes the bus at this moment; the next question tells.
            self._manager.cluster.request_update()

    def topic(self, name: str, timeout_s: float = ANSWER_S) -> TopicNode:
        """Return who leads a topic's partitions, as far as it is known here.

        Raises
        ------
        NotFoundError
            No such topic.
        """
        known = self._topics.get(name)
        return known if known is not None else self.look_up(name, timeout_s)

    def look_up(self, name: str, timeout_s: float = ANSWER_S) -> TopicNode:
        """Ask who leads a topic's partitions."""

        def attempt(left_s: float) -> TopicNode:
            # Broker-side auto-creation is refused: a mistyped name must not become a topic.
            wanted = [MetadataRequest.MetadataRequestTopic(name=name)]
            response = self.ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False), None, left_s)
            [found] = response.topics
            if found.error_code == kafka.errors.LeaderNotAvailableError.errno:
                raise Again("no leader yet")
            if found.error_code in _NO_TOPIC:
                raise no_topic(name)
            check(found.error_code)
            node = self._topics[name] = topic_node(found)
            return node

        try:
            return self.persist(attempt, "looking a topic up", timeout_s, topic=name)
        except RefoldError:
            self._topics.pop(name, None)
            raise

    def leader(self, place: Place, timeout_s: float = ANSWER_S) -> int:
        """Return the broker that leads a partition.

        Raises
        ------
        Again
            It has no leader now; the next call asks anew.
        """
        node = self.topic(place.topic, timeout_s).leaders.get(place.partition, -1)
        if node < 0:
            self.forget(place.topic)
            raise Again(f"partition {place.partition} of {place.topic} has no leader")
        if self._manager.cluster.broker_metadata(node) is None:
            # It was down when the brokers were last listed, which kafka-python does once a minute by itself.
            self._refresh_brokers()
            raise Again(f"broker {node} is not known yet")
        return node

    def nodes(self) -> list[int]:
        """Return the brokers that are known."""
        return sorted(broker.node_id for broker in self._manager.cluster.brokers())

    def second_line(self, node: int) -> str:
        """Return another connection to a broker.

        Raises
        ------
        Again
            The broker is not known any more.
        """
        broker = self._manager.cluster.broker_metadata(node)
        if broker is None:
            self._refresh_brokers()
            raise Again(f"broker {node} is not known")
        alias = SimpleNamespace(error_code=0, node_id=f"{node}-second", host=broker.host, port=broker.port)
        line: str = self._manager.cluster.add_coordinator(alias, 0, alias.node_id)
        return line

    def forget(self, topic: str) -> None:
        """Ask anew who leads this topic, when it is next needed."""
        self._topics.pop(topic, None)

    def coordinator(self, group: str, timeout_s: float = ANSWER_S) -> Coordinator:
        """Return the connections to a group's coordinator.

        Raises
        ------
        Again
            There is none yet.
        """
        known = self._coordinators.get(group)
        if known is not None:
            return known
        request = FindCoordinatorRequest(key=group, key_type=0, coordinator_keys=[group])
        response = self.ask(request, None, timeout_s)
        found = response.coordinators[0] if response.coordinators else response
        check(found.error_code)
        add, broker = self._manager.cluster.add_coordinator, found.node_id
        patient = add(found, 0, group)
        found.node_id = f"{broker}-prompt"
        lines = self._coordinators[group] = Coordinator(patient, add(found, 0, group))
        return lines

    def forget_coordinator(self, group: str) -> None:
        """Look for the coordinator anew, when it is next needed."""
        self._coordinators.pop(group, None)

    @property
    def is_closed(self) -> bool:
        """Whether it has been let go of."""
        return bool(self._net._closed)

    def close(self) -> None:
        """Let go of the connections; waits `STOP_S` at most, and leaves a network thread that hangs to the process's end."""
        if self.is_closed or os.getpid() != self._pid:
            return
        closed = threading.Event()
        try:
            self._net.call_soon_with_future(self._manager.close).add_both(lambda _: closed.set())
            closed.wait(STOP_S)
        except Exception:
            logging.getLogger(__name__).debug("the connections were closed already", exc_info=True)
        thread = self._net._io_thread
        self._net.stop(timeout_ms=STOP_S * 1000)
        if thread is None or not thread.is_alive():
            self._net.close()


_NO_TOPIC = frozenset({kafka.errors.UnknownTopicOrPartitionError.errno, kafka.errors.InvalidTopicError.errno})


def _listens(broker: str) -> bool:
    """Whether somebody accepts connections at an address."""
    host, _, port = broker.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTEN_S).close()
    except OSError:
        return False
    return True


def close_with(owner: object, client: KafkaClient) -> None:
    """Let go of a client's connections when its owner is dropped without having been closed.

    In a thread: the collector may run anywhere, and closing waits. At the end of the process there is nothing to let go of.
    """

    def close() -> None:
        if not client.is_closed:
            threading.Thread(target=client.close, name="refold-close", daemon=True).start()

    weakref.finalize(owner, close).atexit = False


def topic_node(found: Any) -> TopicNode:
    """Return what a metadata answer says of one topic."""
    leaders = {part.partition_index: part.leader_id for part in found.partitions}
    return TopicNode(leaders, min((len(part.replica_nodes) for part in found.partitions), default=0))
